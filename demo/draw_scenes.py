"""Draw the demo's data set: small textured landscapes and streets in the layouts of ADE20K and COCO panoptic."""

import json
from pathlib import Path

import cv2
import drawing
import numpy as np
from scene_canvas import CLASSES, LABELS, SIZES, Scene, draw_ground, draw_hills, draw_sky
from scene_things import place

VERSION = 2  # stored with the data: raise it when the drawing changes, so that old data are drawn again


#: Classes whose objects are told apart in the panoptic maps; the others are stuff.
THINGS = ('building', 'tree', 'car', 'person', 'pole')
SMALLEST = 32  # pixels of an object; smaller ones are in no segment


def draw_scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the scene of a seed.

    Returns:
        Its image (H, W, 3) uint8 RGB, label map (H, W) uint8, and the numbers of objects (H, W) int32.
    """
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
            s.number += 1
            draw(s, u, z)
    rgb = cv2.GaussianBlur(s.rgb, (0, 0), rng.uniform(0.4, 0.9))
    gy, gx = np.ogrid[-1 : 1 : s.h * 1j, -1 : 1 : s.w * 1j]
    rgb *= (1 - rng.uniform(0, 0.18) * (gx**2 + gy**2))[..., None].astype(np.float32)
    rgb = np.clip(rgb * rng.uniform(0.94, 1.06, 3).astype(np.float32), 0, 1) ** rng.uniform(0.85, 1.15)
    rgb += rng.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(0.005, 0.03))
    return np.uint8(np.clip(rgb, 0, 1) * 255), s.label, s.thing


def segments_of(label: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """Number the segments of a scene, see ``draw_scene``: one for each object, and one for all stuff of a class.

    Returns:
        Number of each pixel's segment (H, W), 0 for none, and COCO's ``segments_info``.
    """
    of_things = np.isin(label, [LABELS[name] for name in THINGS])
    numbers = np.where(label > 0, label + len(CLASSES) * 2 * np.where(of_things, thing, 0), 0)
    segments = []
    for number, area in zip(*np.unique(numbers[numbers > 0], return_counts=True)):
        rows, columns = np.nonzero(numbers == number)
        if area < SMALLEST:
            numbers[rows, columns] = 0
            continue
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
        category = int(label[rows[0], columns[0]])
        segments.append(dict(id=int(number), category_id=category, area=int(area), bbox=box, iscrowd=0))
    return numbers, segments


def write_scene(root: Path, job: tuple) -> tuple[str, dict, dict]:
    """Draw the scene of a job (split, number of the split, index, seed) and write it into the folder ``root``.

    Returns:
        The split, and COCO's entries for image and annotation.
    """
    split, number, index, seed = job
    cv2.setNumThreads(1)
    image, label, thing = draw_scene([seed, number, index])
    name = f'scene_{index:05d}'
    cv2.imwrite(str(root / 'images' / split / f'{name}.jpg'), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(str(root / 'annotations' / split / f'{name}.png'), label)
    numbers, segments = segments_of(label, thing)
    blue_green_red = np.stack([numbers >> 16, numbers >> 8, numbers], -1).astype(np.uint8)
    cv2.imwrite(str(root / 'panoptic' / split / f'{name}.png'), blue_green_red)
    height, width = label.shape
    return (
        split,
        dict(id=index, file_name=f'{name}.jpg', width=width, height=height),
        dict(image_id=index, file_name=f'{name}.png', segments_info=segments),
    )


def write_panoptic(root: Path, scenes: list[tuple]) -> None:
    """Write COCO's ``panoptic_<split>.json``; ``scenes``: what ``write_scene`` returned."""
    # mmdet numbers classes in the order of the file.
    names = sorted(CLASSES, key=lambda name: name not in THINGS)
    categories = [dict(id=LABELS[name], name=name, isthing=int(name in THINGS)) for name in names]
    for split in ('training', 'validation'):
        images, annotations = ([scene[i] for scene in scenes if scene[0] == split] for i in (1, 2))
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'panoptic_{split}.json').write_text(json.dumps(content))


def folders(split: str) -> list[str]:
    """Name the folders of the images, labels and panoptic maps of a split."""
    return [f'{part}/{split}' for part in ('images', 'annotations', 'panoptic')]


def main() -> None:
    """Run the command line."""
    drawing.draw_data_set(__doc__.splitlines()[0], 'scenes', VERSION, (2400, 100), folders, write_scene, write_panoptic)


if __name__ == '__main__':
    main()
