import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CLASSES = tuple(Config.fromfile(ROOT / 'configs/_base_/datasets/demo_shapes.py').metainfo.classes)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp('draw') / 'shapes'
    subprocess.run(
        [sys.executable, ROOT / 'demo/draw_shapes.py', '--out', out, '--train', '3', '--val', '60'], check=True
    )
    return out


def test_each_split_has_a_folder_for_each_class_of_the_config(shapes):
    for split, count in (('training', 3), ('validation', 60)):
        assert sorted(folder.name for folder in (shapes / split).iterdir()) == list(CLASSES)
        assert len(list((shapes / split).glob('*/*.jpg'))) == count


def test_every_class_is_drawn_and_shows_something_lighter_than_its_ground(shapes):
    for name in CLASSES:
        images = [cv2.imread(str(path)).mean(2) for path in (shapes / 'validation' / name).iterdir()]
        assert images and all(image.shape == (96, 96) and image.max() - image.min() > 60 for image in images)


def test_the_same_seed_draws_the_same_bytes(shapes, tmp_path):
    subprocess.run(
        [sys.executable, ROOT / 'demo/draw_shapes.py', '--out', tmp_path / 'again', '--train', '0', '--val', '5'],
        check=True,
    )
    again = sorted((tmp_path / 'again').rglob('*.jpg'))
    assert len(again) == 5
    assert all(path.read_bytes() == (shapes / path.relative_to(tmp_path / 'again')).read_bytes() for path in again)
