"""Masks of an annotation file in COCO's layout, pixel by pixel."""

import json
import re
import runpy

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from tests.conftest import TOOLS


def rectangle(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def blob():
    """(10, 12), in RLE."""
    return np.add.outer(np.arange(10), np.arange(12)) % 7 == 3


def counts(mask):
    """Uncompressed RLE: lengths of runs down the columns, the first of zeros."""
    runs, value = [0], 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    return runs


@pytest.fixture
def coco(tmp_path):
    """Three images, with polygons that overlap, with RLE in both forms, and without objects: the file's content."""
    packed = masks.encode(np.asfortranarray(blob()[::-1].astype(np.uint8)))
    objects = [
        (1, rectangle(1, 2, 5, 6)),
        (1, rectangle(4, 5, 9, 8)),
        (2, dict(size=[10, 12], counts=counts(blob()))),
        (2, dict(size=[10, 12], counts=packed['counts'].decode())),
    ]
    return dict(
        images=[
            dict(id=i, file_name=name, height=10, width=12)
            for i, name in ((1, 'a.jpg'), (2, 'more/b.tif'), (3, 'c.png'))
        ],
        annotations=[
            dict(id=7 + i, image_id=image, category_id=1, segmentation=segmentation, iscrowd=0)
            for i, (image, segmentation) in enumerate(objects)
        ],
        categories=[dict(id=1, name='cell')],
    )


@pytest.fixture
def draw(tmp_path):
    """Function that runs the tool on the content of a file: {name: mask}."""

    def draw(content):
        (tmp_path / 'a.json').write_text(content if isinstance(content, str) else json.dumps(content))
        runpy.run_path(str(TOOLS / 'draw_masks.py'))['main']([str(tmp_path / 'a.json'), str(tmp_path / 'out')])
        files = (tmp_path / 'out').rglob('*.png')
        return {str(file.relative_to(tmp_path / 'out')): np.asarray(Image.open(file)) for file in files}

    return draw


def test_every_object_is_drawn_and_nothing_else(draw, coco, capsys):
    drawn = draw(coco)
    assert "Wrote 3 masks to '" in capsys.readouterr().out
    expected = {name: np.zeros((10, 12), np.uint8) for name in ('a.png', 'more/b.png', 'c.png')}
    expected['a.png'][2:6, 1:5] = expected['a.png'][5:8, 4:9] = 255
    expected['more/b.png'][blob() | blob()[::-1]] = 255
    assert drawn.keys() == expected.keys()
    for name, mask in drawn.items():
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected[name])


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda coco: coco['annotations'][1].pop('segmentation'), r"1 of 4 annotations in '\S*' are boxes .* the id 8"),
        (lambda coco: coco['annotations'][0].update(segmentation=[]), r'the first has the id 7: masks need polygons'),
        (lambda coco: coco.pop('images'), "is no annotation file in COCO's layout"),
        (lambda coco: coco['images'][0].pop('height'), "is no annotation file in COCO's layout"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(draw, coco, capsys, tmp_path, change, words):
    change(coco)
    with pytest.raises(SystemExit, match='2'):
        draw(coco)
    said = capsys.readouterr().err
    assert said.count('\n') == 1
    assert re.search(words, said), said
    assert not (tmp_path / 'out').exists()


def test_files_that_are_none_are_said(draw, capsys, tmp_path):
    with pytest.raises(SystemExit, match='2'):
        draw('no json')
    assert "is no annotation file in COCO's layout" in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        runpy.run_path(str(TOOLS / 'draw_masks.py'))['main']([str(tmp_path / 'gone.json'), str(tmp_path / 'out')])
    assert "gone.json' cannot be read: No such file or directory." in capsys.readouterr().err
