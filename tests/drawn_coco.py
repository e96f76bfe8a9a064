"""Small COCO sets of bright rectangles and discs on two kinds of ground, drawn for tests."""

import json

import numpy as np
from PIL import Image

SIZE = 64
THINGS, STUFF = ('box', 'disc'), ('grass', 'sand')
METAINFO = dict(classes=THINGS, palette=[(200, 60, 60), (60, 60, 200)])
PANOPTIC = dict(classes=THINGS + STUFF, thing_classes=THINGS, stuff_classes=STUFF)
COLOURS = dict(box=(200, 60, 60), disc=(60, 60, 200), grass=(40, 110, 40), sand=(150, 130, 80))


def scene(rng, count):
    """Pixels, class index of each pixel's ground, and (class, mask) of ``count`` things that do not overlap."""
    ground = np.full((SIZE, SIZE), 2)
    ground[:, rng.integers(20, 44) :] = 3
    things, free = [], np.ones((SIZE, SIZE), bool)
    y, x = np.mgrid[:SIZE, :SIZE]
    while len(things) < count:
        kind, radius = int(rng.integers(2)), int(rng.integers(6, 12))
        row, column = rng.integers(radius, SIZE - radius, 2)
        far = (abs(y - row), abs(x - column))
        mask = np.maximum(*far) < radius if kind == 0 else np.hypot(*far) < radius
        if (free | ~mask).all():
            free &= ~mask
            things.append((kind, mask))
    names = np.array(THINGS + STUFF)[ground]
    pixels = np.array([[COLOURS[name] for name in row] for row in names])
    for kind, mask in things:
        pixels[mask] = COLOURS[THINGS[kind]]
    return (pixels + rng.integers(-25, 25, pixels.shape)).clip(0, 255).astype(np.uint8), ground, things


def run_lengths(mask):
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(np.diff(flat)) if flat.any() else np.array([], int)
    ends = np.concatenate([[0], changes, [mask.size]])
    return dict(size=list(mask.shape), counts=[int(n) for n in np.diff(ends)])


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def write(path, images, annotations, names):
    categories = [dict(id=10 * i, name=name, isthing=int(name in THINGS)) for i, name in enumerate(names, 1)]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def draw_coco(root, counts=(0, 1, 2, 3), seed=0):
    """Images with ``counts`` things each, ``instances.json``, and ``panoptic.json`` with its label maps.

    In the instance file the last image also has a thing of one pixel, and a crowd over all of it.
    """
    rng = np.random.default_rng(seed)
    for folder in ('images', 'panoptic', 'semantic'):
        (root / folder).mkdir(parents=True)
    images, instances, panoptic = [], [], []
    for i, count in enumerate(counts):
        pixels, ground, things = scene(rng, count)
        name = f'{i}.jpg'
        images.append(dict(id=i, file_name=name, width=SIZE, height=SIZE))
        Image.fromarray(pixels).save(root / 'images' / name, quality=95)
        segments, numbers = [], np.zeros((SIZE, SIZE), np.int64)
        masks = [(label, mask) for label, mask in things]
        free = ~np.any([mask for _, mask in things], 0) if things else np.ones((SIZE, SIZE), bool)
        masks += [(label, (ground == label) & free) for label in (2, 3)]
        labels = ground.copy()
        for number, (label, mask) in enumerate(masks, 1 + 300 * i):
            numbers[mask], labels[mask] = number, label
            segments.append(
                dict(id=number, category_id=10 * (label + 1), area=int(mask.sum()), bbox=box_of(mask), iscrowd=0)
            )
        rgb = np.stack((numbers % 256, numbers // 256 % 256, numbers // 65536), -1)
        Image.fromarray(rgb.astype(np.uint8)).save(root / 'panoptic' / f'{i}.png')
        Image.fromarray(labels.astype(np.uint8)).save(root / 'semantic' / f'{i}.png')
        panoptic.append(dict(image_id=i, file_name=f'{i}.png', segments_info=segments))
        if i == len(counts) - 1:
            pixel = np.zeros((SIZE, SIZE), bool)
            pixel[5, 7] = True
            things = [*things, (0, pixel), ('crowd', np.ones((SIZE, SIZE), bool))]
        for label, mask in things:
            crowd = label == 'crowd'
            instances.append(
                dict(
                    id=len(instances) + 1,
                    image_id=i,
                    category_id=10 * ((0 if crowd else label) + 1),
                    bbox=box_of(mask),
                    area=int(mask.sum()),
                    iscrowd=int(crowd),
                    segmentation=run_lengths(mask),
                )
            )
    write(root / 'instances.json', images, instances, THINGS)
    write(root / 'panoptic.json', images, panoptic, THINGS + STUFF)
    return root
