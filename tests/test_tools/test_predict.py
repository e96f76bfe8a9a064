import re
import runpy
import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from mmtr import apply_token_reduction
from mmtr.inference.model import build_model
from tests.conftest import TOOLS
from tests.drawn_coco import draw_coco
from tests.test_models.test_maskdino_configs import CONFIGS, small

REDUCTION = dict(type='TokenAdapter', restore='copy', ratio=0.25, layers=(1, 2))
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
CAPTION, GAP = 26, 6


def save(cfg, folder, name):
    """A config and its initial weights."""
    cfg.dump(str(folder / f'{name}.py'))
    torch.manual_seed(1)
    model = build_model(cfg)
    if name == 'detector':  # some of its parameters are whatever was in memory
        model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / f'{name}.pth')


@pytest.fixture
def files(tiny_segmenter, tmp_path):
    """Configs and checkpoint of a tiny segmentor: stock, with the key, by the hook."""
    # With random weights, a Segmenter's head sees one class everywhere.
    tiny_segmenter.model.decode_head = dict(
        type='FCNHead', in_channels=32, channels=8, num_convs=1, kernel_size=1, concat_input=False, num_classes=4
    )
    tiny_segmenter.test_dataloader.dataset.metainfo.palette = PALETTE
    tiny_segmenter.test_pipeline = tiny_segmenter.test_dataloader.dataset.pipeline
    save(tiny_segmenter, tmp_path, 'stock')
    hook = Config(
        {
            **tiny_segmenter.to_dict(),
            'custom_imports': dict(imports=['mmtr']),
            'custom_hooks': [dict(type='mmtr.TokenReductionHook', token_reduction=REDUCTION)],
        }
    )
    hook.dump(str(tmp_path / 'hook.py'))
    tiny_segmenter.model.backbone.update(type='mmtr.VisionTransformer', token_reduction=REDUCTION)
    tiny_segmenter.dump(str(tmp_path / 'key.py'))
    return tmp_path


@pytest.fixture
def photos(drawn_data, tmp_path):
    """Folder of photos of two sizes, two of which differ in the suffix only."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for i, name in enumerate(('a.png', 'a.jpg', 'b.png')):
        image = cv2.imread(str(drawn_data / f'images/training/{i}.png'))
        cv2.imwrite(str(folder / name), image[:48] if name == 'b.png' else image)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Function that runs the tool into ``tmp_path / 'out'``; gives its exit status, and what it printed and said."""

    def run(config, checkpoint, source, *args):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'predict.py',
                *map(str, (config, checkpoint, source, '--device', 'cpu', '--out', tmp_path / 'out', *args)),
            ],
        )
        capsys.readouterr()
        try:
            runpy.run_path(str(TOOLS / 'predict.py'), run_name='__main__')
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def labels_of_stock(files, path):
    """What stock mmseg predicts, without and with reduction."""
    model = init_model(str(files / 'stock.py'), str(files / 'stock.pth'), device='cpu')
    plain, reduced = (
        inference_model(apply_token_reduction(model, reduction), str(path)).pred_sem_seg.data[0].numpy()
        for reduction in (None, REDUCTION)
    )
    return plain, reduced


def overlaid(path, labels):
    return 0.4 * cv2.imread(str(path))[..., ::-1] + 0.6 * np.array(PALETTE)[labels]


def alike(drawn, expected):
    """Whether pixels agree where no name of a class is written."""
    return (np.abs(drawn[..., ::-1] - expected).max(-1) < 3).mean() > 0.6


def test_a_folder_predicted(run, files, photos, tmp_path):
    (photos / 'broken.png').write_text('no image')
    status, printed, said = run(files / 'stock.py', files / 'stock.pth', photos)
    assert status == 1
    assert f"'{photos}/broken.png' cannot be read as an image." in said
    assert said.splitlines()[-1] == f'1 of 4 images could not be read: {photos}/broken.png'
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['a.jpg', 'a.png', 'b.png']
    for name in ('a.png', 'b.png'):
        drawn = cv2.imread(str(tmp_path / 'out' / name))
        assert alike(drawn, overlaid(photos / name, labels_of_stock(files, photos / name)[0]))
    assert printed == f'Written to {tmp_path}/out\n' and 'Neither' not in said


@pytest.mark.parametrize('config', ['key', 'hook'])
def test_plain_beside_reduced(config, run, files, photos, tmp_path):
    status, printed, _ = run(files / f'{config}.py', files / 'stock.pth', photos, '--compare', '--repeats', 1)
    assert status == 0
    shares, pixels = [], []
    lines = printed.splitlines()
    for line, name in zip(lines, ('a.jpg', 'a.png', 'b.png')):
        plain, reduced = labels_of_stock(files, photos / name)
        shares.append((plain != reduced).sum())
        pixels.append(plain.size)
        found = re.fullmatch(
            rf'{name}: plain ([\d.]+) ms, TokenAdapter ([\d.]+) ms, ([\d.]+)x, (.+) of the pixels '
            'differ',
            line,
        )
        assert found[4] == f'{shares[-1] / pixels[-1]:.2%}'
        assert float(found[3]) == pytest.approx(float(found[1]) / float(found[2]), rel=0.1)
        if name == 'a.png':
            panels = np.split(
                cv2.imread(str(tmp_path / 'out' / name))[CAPTION:], [400, 400 + GAP, 800 + GAP, 800 + 2 * GAP], axis=1
            )[::2]
            middle = ((np.arange(64) + 0.5) * 400 / 64).astype(int)
            one, other, differs = (panel[middle][:, middle] for panel in panels)
            assert alike(one, overlaid(photos / name, plain)) and alike(other, overlaid(photos / name, reduced))
            assert np.array_equal((differs == 255).all(-1), plain != reduced)
    assert 0 < sum(shares) < sum(pixels)
    table = [re.split(r' {2,}', row.strip()) for row in lines[3:6]]
    assert table[0] == ['ms/image', 'images/s', 'speed-up', 'pixels that differ']
    assert [row[0] for row in table[1:]] == ['plain', 'TokenAdapter'] and table[1][3] == '1.00x'
    assert table[2][4] == f'{sum(shares) / sum(pixels):.2%}'
    assert lines[6:] == [
        'Pixels differ that are of another class.',
        'Times: of the whole test step, median over the images, for each one run.',
        lines[8],
        f'Written to {tmp_path}/out',
    ]
    assert lines[8].startswith('Machine: cpu') and f'torch {torch.__version__}' in lines[8]


def film(path, count, fourcc='mp4v', size=(64, 48)):
    stream = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10, size)
    for i in range(count):
        frame = np.full((*size[::-1], 3), 100, np.uint8)
        frame[:, 8 * i : 8 * i + 16] = (200, 40, 40)
        stream.write(frame)
    stream.release()
    return path


def test_a_video_gives_a_video(run, files, tmp_path):
    status, printed, _ = run(files / 'key.py', files / 'stock.pth', film(tmp_path / 'film.avi', 5, 'MJPG'))
    assert status == 0
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['film.mp4']
    frames = mmcv.VideoReader(str(tmp_path / 'out/film.mp4'))
    assert (len(list(frames)), frames.fps, frames.resolution) == (5, 10, (64, 48))
    given = list(mmcv.VideoReader(str(tmp_path / 'film.avi')))
    cv2.imwrite(str(tmp_path / 'frame.png'), given[3])
    expected = overlaid(tmp_path / 'frame.png', labels_of_stock(files, tmp_path / 'frame.png')[1])
    # What compression leaves of the text and of the borders between classes.
    assert np.median(np.abs(frames[3][..., ::-1] - expected)) < 12


def test_a_video_compared(run, files, tmp_path):
    status, printed, _ = run(files / 'key.py', files / 'stock.pth', film(tmp_path / 'film.mp4', 3), '--compare')
    assert status == 0 and printed.split()[0] == 'ms/image' and 'each one run' in printed
    frames = list(mmcv.VideoReader(str(tmp_path / 'out/film.mp4')))
    assert len(frames) == 3 and frames[0].shape == (CAPTION + 300, 3 * 400 + 2 * GAP, 3)


@pytest.fixture
def detector(tmp_path):
    """Function that saves a tiny MaskDINO of a config with random weights; the paths of its config and checkpoint."""

    def make(name):
        cfg = small(CONFIGS[0].parent / f'{name}.py', draw_coco(tmp_path / 'coco'), tmp_path)
        cfg.model.backbone.token_reduction.update(layers=(1, 2))
        save(cfg, tmp_path, 'detector')
        return tmp_path / 'detector.py', tmp_path / 'detector.pth'

    return make


def test_instances_compared(run, detector, tmp_path):
    files = detector('maskdino_swin-t_tadapter_nuclei')
    status, printed, _ = run(*files, tmp_path / 'coco/images', '--compare', '--repeats', 1, '--score-thr', 0.005)
    assert status == 0
    found = re.findall(
        r'\.jpg: .*% of the pixels differ, instances: (\d+) plain, (\d+) reduced, (\d+) in both', printed
    )
    counts = [list(map(int, each)) for each in found]
    assert len(counts) == 4 and all(both <= min(plain, reduced) for plain, reduced, both in counts)
    sums = [sum(column) for column in zip(*counts)]
    assert f'\nIn all, instances: {sums[0]} plain, {sums[1]} reduced, {sums[2]} in both.\n' in printed
    assert 0 < sums[2] <= sums[0]
    assert len(list((tmp_path / 'out').iterdir())) == 4
    status, _, _ = run(*files, tmp_path / 'coco/images/1.jpg', '--score-thr', 1)
    expected = cv2.imread(str(tmp_path / 'coco/images/1.jpg'))
    assert status == 0 and np.abs(cv2.imread(str(tmp_path / 'out/1.jpg')) - expected.astype(int)).mean() < 3


@pytest.mark.slow
def test_a_panoptic_map_of_nothing(run, detector, tmp_path):
    files = detector('maskdino_swin-l_tadapter_coco-panoptic')
    options = '--cfg-options', 'model.test_cfg.score_thr=1.0', 'custom_imports.imports=["mmtr","mmtr.models.detectors"]'
    photo = tmp_path / 'coco/images/1.jpg'
    status, printed, _ = run(*files, photo, '--compare', *options)
    assert status == 0 and '0.00% of the pixels differ, instances: 0 plain, 0 reduced, 0 in both' in printed
    status, _, said = run(*files, photo, '--score-thr', 0.2, *options)
    assert status == 2 and '--score-thr 0.2 is the least score of an instance' in said


@pytest.mark.parametrize(
    'config, source, args, sentence',
    [
        ('key', 'nowhere.png', [], "'nowhere.png' is not there."),
        ('key', '{key.py}', [], "key.py' is neither an image (.jpg, "),
        ('key', '{work}', [], "The folder '{work}' holds no image (.jpg, "),
        ('key', '{bad.mp4}', [], "The video '{bad.mp4}' cannot be decoded: it is damaged, or this OpenCV"),
        (
            'key',
            '{photos}',
            ['--out', '{key.py}/out'],
            "--out '{key.py}/out' cannot be a folder: '{key.py}' is a file.",
        ),
        (
            'key',
            '{photos}',
            ['--out', '{photos}'],
            "--out '{photos}' is where the images are, and would overwrite them",
        ),
        ('key', '{film.mp4}', ['--out', '{work}/..'], 'is where the video is, and would overwrite it'),
        (
            'stock',
            '{photos}',
            ['--compare'],
            '--compare compares the model with its reduction, and this config has none',
        ),
        ('key', '{photos}', ['--repeats', '3'], '--repeats is how often --compare times each image'),
        ('key', '{photos}', ['--score-thr', '.5'], 'this model predicts no instances: leave it out.'),
        ('key', '{photos}', ['--cfg-options', 'test_dataloader='], 'must have a model and a test_dataloader'),
        (
            'key',
            '{photos}',
            ['--cfg-options', 'test_dataloader.dataset.pipeline.0.type=LoadImageFromNDArray'],
            'LoadImageFromFile is not found in the test pipeline',
        ),
        ('key', '{photos}', ['--device', 'cuda:77'], '--device cuda:77 cannot be used'),
    ],
)
def test_bad_input_is_one_sentence(config, source, args, sentence, run, files, photos, tmp_path):
    (tmp_path / 'work').mkdir(exist_ok=True)
    (tmp_path / 'bad.mp4').write_text('no video' * 200)
    film(tmp_path / 'film.mp4', 1)

    def filled(text):
        return re.sub(r'\{([\w.]+)\}', lambda name: str(tmp_path / name[1]), text)

    status, _, said = run(files / f'{config}.py', files / 'stock.pth', filled(source), *map(filled, args))
    assert status == 2 and said.splitlines()[-1].startswith('Error: ') and filled(sentence) in said.splitlines()[-1]
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_a_checkpoint_of_another_model_is_said(run, files, photos):
    status, _, said = run(files / 'key.py', files / 'stock.pth', photos, '--cfg-options', 'model.backbone.num_layers=3')
    assert status == 2 and 'does not cover the model' in said
