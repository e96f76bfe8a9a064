"""Draw the demo's data set: small textured landscapes and streets in the folder layout of ADE20K."""

from pathlib import Path

import cv2
import drawing
import numpy as np
from scene_canvas import LABELS, SIZES, Scene, draw_ground, draw_hills, draw_sky
from scene_things import place

VERSION = 1  # stored with the data: raise it when the drawing changes, so that old data are drawn again


def draw_scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the scene of a seed: return its image (H, W, 3) uint8 RGB and label map (H, W) uint8."""
    rng = np.random.default_rng(seed)
    s = Scene(rng, SIZES[rng.integers(len(SIZES))])
    draw_sky(s)
    if rng.random() < s.kind['hills']:
        draw_hills(s)
    draw_ground(s)
    for z, draw, u in place(s):
        x, y = (int(v) for v in s.at(u, 0, z))
        afloat = 0 <= x < s.w and s.horizon < y < s.h and s.label[y, x] == LABELS['water']
        if not afloat:
            draw(s, u, z)
    rgb = cv2.GaussianBlur(s.rgb, (0, 0), rng.uniform(0.4, 0.9))
    gy, gx = np.ogrid[-1 : 1 : s.h * 1j, -1 : 1 : s.w * 1j]
    rgb *= (1 - rng.uniform(0, 0.18) * (gx**2 + gy**2))[..., None].astype(np.float32)
    rgb = np.clip(rgb * rng.uniform(0.94, 1.06, 3).astype(np.float32), 0, 1) ** rng.uniform(0.85, 1.15)
    rgb += rng.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(0.005, 0.03))
    return np.uint8(np.clip(rgb, 0, 1) * 255), s.label


def write_scene(root: Path, job: tuple) -> None:
    """Draw the scene of a job (split, number of the split, index, seed) and write it into the folder ``root``."""
    split, number, index, seed = job
    cv2.setNumThreads(1)
    image, label = draw_scene([seed, number, index])
    name = f'scene_{index:05d}'
    cv2.imwrite(str(root / 'images' / split / f'{name}.jpg'), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(str(root / 'annotations' / split / f'{name}.png'), label)


def folders(split: str) -> list[str]:
    """Name the folders of the images and labels of a split."""
    return [f'{part}/{split}' for part in ('images', 'annotations')]


def main() -> None:
    """Run the command line."""
    drawing.draw_data_set(__doc__.splitlines()[0], 'scenes', VERSION, (2400, 100), folders, write_scene)


if __name__ == '__main__':
    main()
