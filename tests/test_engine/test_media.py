import cv2
import mmcv
import numpy as np
import pytest

from mmtr import UserError
from mmtr.inference.media import open_source

SIZE = (31, 45)


@pytest.fixture
def film(tmp_path):
    """A video of six grey frames, each brighter than the one before."""
    stream = cv2.VideoWriter(str(tmp_path / 'film.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 12.5, (48, 32))
    for i in range(6):
        stream.write(np.full((32, 48, 3), 40 * i, np.uint8))
    stream.release()
    return tmp_path / 'film.avi'


def test_frames_are_read_and_written_in_order(film, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    video = open_source(film)
    assert len(video) == 6
    with video.writer(out) as write:
        for i, frame in enumerate(video):
            assert frame.name == f'frame {i + 1}' and frame.given.shape == (32, 48, 3)
            assert abs(int(frame.pixels[0, 0, 0]) - 40 * i) < 3
            picture = np.zeros((*SIZE, 3), np.uint8)  # odd sides, in RGB
            picture[..., 0], picture[..., 2] = 200, 30 * i
            write(frame.name, picture)
        assert not (out / 'film.mp4').exists()
    assert [path.name for path in out.iterdir()] == ['film.mp4']
    frames = list(mmcv.VideoReader(str(out / 'film.mp4')))
    assert len(frames) == 6 and mmcv.VideoReader(str(out / 'film.mp4')).fps == 12.5
    for i, frame in enumerate(frames):
        assert frame.shape == (32, 46, 3)
        assert np.abs(frame.astype(int) - (30 * i, 0, 200)).max() < 12


def test_a_film_that_is_not_whole_is_no_file(film, tmp_path):
    video, before = open_source(film), sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), video.writer(tmp_path) as write:
        write('', np.zeros((32, 32, 3), np.uint8))
        raise KeyboardInterrupt
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match='of 2 frames, 1 could be read again'), video.writer(tmp_path) as write:
        write('', np.zeros((32, 32, 3), np.uint8))
        write('', np.zeros((16, 16, 3), np.uint8))  # which OpenCV leaves out without a word
    assert sorted(tmp_path.iterdir()) == before


def test_frames_that_are_missing_are_said(tmp_path, capsys):
    path = tmp_path / 'noise.avi'
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 64))
    for i in range(12):
        stream.write(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8))
    stream.release()
    assert len(list(open_source(path))) == 12 and not capsys.readouterr().err
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # the head still counts all
    found = len(list(open_source(path)))
    assert 0 < found < 12
    assert f'has 12 frames, but after {found} nothing more could be decoded' in capsys.readouterr().err


def test_images_keep_their_names(tmp_path):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'out').mkdir()
    names = ['a.JPG', 'a.png', 'b.bmp', 'c.tif', 'd.webp']
    for i, name in enumerate(names):
        cv2.imwrite(str(tmp_path / 'photos' / name), np.full((8, 9, 3), (200, 100, 20 * i), np.uint8))
    (tmp_path / 'photos/notes.txt').write_text('not an image')
    images = open_source(tmp_path / 'photos')
    with images.writer(tmp_path / 'out') as write:
        for image in images:
            write(image.name, image.pixels)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == names and images.unread == []
    for i, name in enumerate(names):
        assert np.abs(cv2.imread(str(tmp_path / 'out' / name)).astype(int) - (200, 100, 20 * i)).max() < 8


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos/a.png'), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / 'out/a.png').mkdir(parents=True)
    images = open_source(tmp_path / 'photos/a.png')
    with pytest.raises(UserError, match="out/a.png' cannot be written"), images.writer(tmp_path / 'out') as write:
        write('a.png', np.zeros((8, 8, 3), np.uint8))
