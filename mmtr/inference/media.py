"""Read images and videos, and write pictures and videos."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple, Union

import cv2
import mmcv
import numpy as np
from tqdm import tqdm

from mmtr.checks.data import IMAGE_SUFFIXES, images_in
from mmtr.errors import UserError
from mmtr.files import written_whole

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
#: Frames a second of a video that does not say its own.
DEFAULT_FPS = 25


class Picture(NamedTuple):
    """One image of a source.

    Args:
        name: Name of the image, and of the file that ``write`` makes of it.
        given: Input of a model's pipeline: a file, or a frame, (height, width, 3) uint8 BGR.
        pixels: The image, (height, width, 3) uint8 RGB.
    """

    name: str
    given: Union[str, np.ndarray]
    pixels: np.ndarray


class Images:
    """Iterates over the ``Picture`` of each file; leaves files out that cannot be read, and names them on stderr.

    Args:
        paths: Image files of one folder.

    Attributes:
        unread: The files that could not be read so far.
        repeats: Default number of timed runs of each picture.
    """

    unit, repeats = 'image', 5

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.unread: list[Path] = []

    def __len__(self):
        return len(self.paths)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            image = _read(path)
            if image is None:
                self.unread.append(path)
                tqdm.write(f"'{path}' cannot be read as an image.", file=sys.stderr)
            else:
                yield Picture(path.name, str(path), image[..., ::-1])

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
        """Context that yields ``write(name, picture)``, which writes an RGB picture as a file into ``folder``.

        Raises:
            UserError: A file cannot be written, or the images are in ``folder``.
        """

        def write(name, picture):
            try:
                mmcv.imwrite(picture[..., ::-1], str(folder / name))
            except OSError as error:
                raise UserError(f"'{folder / name}' cannot be written: {error}.") from error

        if folder.resolve() == self.paths[0].parent.resolve():
            raise UserError(f"--out '{folder}' is where the images are, and would overwrite them: give another folder.")
        yield write


def _read(path):
    try:
        return cv2.imread(str(path))
    except cv2.error:  # more pixels than OpenCV takes
        return None


class Video:
    """Iterates over the ``Picture`` of each frame of a video.

    Raises:
        UserError: OpenCV cannot open or decode the file.
    """

    unit, repeats, unread = 'frame', 1, ()

    def __init__(self, path: Path):
        self.path, self.frames = path, mmcv.VideoReader(str(path))
        if not self.frames.opened or self.frames.read() is None:
            raise UserError(
                f"The video '{path}' cannot be decoded: it is damaged, or this OpenCV ({cv2.__version__}) "
                f'has no decoder for it; try `ffmpeg -i {path} -c:v mpeg4 -q:v 2 again.mp4`.'
            )

    def __len__(self):
        return self.frames.frame_cnt

    def __iter__(self) -> Iterator[Picture]:
        count = 0
        for count, frame in enumerate(self.frames, 1):
            yield Picture(f'frame {count}', frame, frame[..., ::-1])
        if count < len(self):
            tqdm.write(
                f"'{self.path}' says that it has {len(self)} frames, but after {count} nothing more could be decoded.",
                file=sys.stderr,
            )

    @contextmanager
    def writer(self, folder: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
        """Context that yields ``write(name, picture)``, which appends an RGB frame to FOLDER/NAME OF THE VIDEO.mp4.

        The file gets its name when it is complete.

        Raises:
            UserError: The file cannot be written or read again, or it is the video that is read.
        """
        path = folder / f'{self.path.stem}.mp4'
        if path.resolve() == self.path.resolve():
            raise UserError(f"--out '{folder}' is where the video is, and would overwrite it: give another folder.")
        stream, count = cv2.VideoWriter(), 0

        def write(name, picture):
            nonlocal count
            # mp4v needs even sides, and OpenCV would cut the last row or column.
            picture = np.pad(picture, [(0, n % 2) for n in picture.shape[:2]] + [(0, 0)], mode='edge')
            if count == 0:
                stream.open(
                    partial, cv2.VideoWriter_fourcc(*'mp4v'), self.frames.fps or DEFAULT_FPS, picture.shape[1::-1]
                )
            stream.write(np.ascontiguousarray(picture[..., ::-1]))
            count += 1

        with written_whole(path, '.mp4') as partial:
            try:
                yield write
            finally:
                stream.release()
            written = mmcv.VideoReader(partial) if Path(partial).exists() else ()
            if len(written) != count:
                raise UserError(
                    f"'{path}' cannot be written: of {count} frames, {len(written)} could be read again; "
                    f'is there space, and has this OpenCV ({cv2.__version__}) FFmpeg?'
                )


def open_source(path: Path) -> Union[Images, Video]:
    """Open the images of a file or folder, or the frames of a video file.

    Raises:
        UserError: ``path`` is not there, is neither image nor video, or is a folder without images.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return Images(images_in(path, what='The folder'))
    if not path.exists():
        raise UserError(f"'{path}' is not there.")
    if suffix in IMAGE_SUFFIXES:
        return Images([path])
    if suffix in VIDEO_SUFFIXES:
        return Video(path)
    raise UserError(
        f"'{path}' is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})."
    )
