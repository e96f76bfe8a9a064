"""Draw the demo's classification data: an image shows one textured shape among strokes, in the folder of its class."""

from pathlib import Path

import cv2
import drawing
import numpy as np

VERSION = 1  # stored with the data: raise it when the drawing changes, so that old data are drawn again
CLASSES = ('arrow', 'crescent', 'cross', 'disc', 'heart', 'pentagon', 'ring', 'square', 'star', 'triangle')
SIZE = 96  # pixels, of both sides
FINE = 4  # factor by which masks are drawn larger, so that edges are smooth


def _regular(corners, radii=(1.0,)):
    """Return a polygon around 0 whose corners have ``radii`` in turn."""
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)


def _crescent():
    outer, inner = _regular(64)[8:57], _regular(64, (0.8,)) + (0.45, 0)
    return np.concatenate([outer, inner[(np.linalg.norm(inner, axis=1) < 1)][::-1]])


def _heart():
    t = 2 * np.pi * np.arange(64) / 64
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], 1) / 17


def _cross():
    quarter = np.array([(0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


#: Outlines around 0, about as large as the unit disc; a second one is a hole.
OUTLINES = {
    'arrow': [np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)])],
    'crescent': [_crescent()],
    'cross': [_cross()],
    'disc': [_regular(64)],
    'heart': [_heart()],
    'pentagon': [_regular(5)],
    'ring': [_regular(64), _regular(64, (0.6,))],
    'square': [_regular(4)],
    'star': [_regular(10, (1.0, 0.42))],
    'triangle': [_regular(3)],
}


def _texture(rng, colour):
    """(SIZE, SIZE, 3) of a colour with fractal noise."""
    noise = sum(
        cv2.resize(rng.standard_normal((2**k, 2**k)).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        * 0.6**k
        for k in range(1, 7)
    )
    return colour + rng.uniform(0.02, 0.08) * noise[..., None]


def _mask(outlines):
    """(SIZE, SIZE, 1) share of each pixel that lies within the outlines, given in pixels."""
    points = [np.round(outline * FINE * 16).astype(np.int32) for outline in outlines]
    mask = np.zeros((SIZE * FINE, SIZE * FINE), np.uint8)
    cv2.fillPoly(mask, points, 255, shift=4)
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA)[..., None] / np.float32(255)


def draw_shape(seed: int) -> tuple[np.ndarray, str]:
    """Draw the image of a seed: return it, (SIZE, SIZE, 3) uint8 RGB, and its class."""
    rng = np.random.default_rng(seed)
    name = CLASSES[rng.integers(len(CLASSES))]
    ground = rng.uniform(0.05, 0.45, 3)
    rgb = _texture(rng, ground)
    for _ in range(rng.integers(1, 5)):  # strokes, of no class
        start, angle, length, width = (
            rng.uniform(0, SIZE, 2),
            rng.uniform(0, np.pi),
            rng.uniform(15, 60),
            rng.uniform(1, 5),
        )
        along = np.array([np.cos(angle), np.sin(angle)])
        across = width / 2 * np.array([-along[1], along[0]])
        end = start + length * along
        stroke = _mask([np.stack([start - across, start + across, end + across, end - across])])
        rgb += stroke * (rng.uniform(0, 1, 3) - rgb)
    scale, angle = rng.uniform(0.2, 0.38) * SIZE, rng.normal(0, 0.25)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    squeeze = np.diag([1, rng.uniform(0.75, 1)])  # seen aslant
    place = rng.uniform(scale, SIZE - scale, 2)
    mask = _mask([scale * outline @ turn @ squeeze + place for outline in OUTLINES[name]])
    colour = ground + rng.uniform(0.3, 0.6, 3)  # lighter than its ground, which a small model learns sooner
    rgb += mask * (_texture(rng, colour) - rgb)
    rgb += rng.standard_normal(rgb.shape) * rng.uniform(0.01, 0.04)
    return np.uint8(np.clip(rgb, 0, 1) * 255), name


def write_shape(root: Path, job: tuple) -> None:
    """Draw the image of a job (split, number of the split, index, seed) and write it into the folder ``root``."""
    split, number, index, seed = job
    cv2.setNumThreads(1)
    image, name = draw_shape([seed, number, index])
    path = root / split / name / f'shape_{index:05d}.jpg'
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def folders(split: str) -> list[str]:
    """Name the folders of the classes of a split."""
    return [f'{split}/{name}' for name in CLASSES]


def main() -> None:
    """Run the command line."""
    drawing.draw_data_set(__doc__.splitlines()[0], 'shapes', VERSION, (12000, 1000), folders, write_shape)


if __name__ == '__main__':
    main()
