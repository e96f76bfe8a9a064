import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[2]
CONFIG = Config.fromfile(ROOT / 'configs/_base_/datasets/demo_scenes.py')


def draw(out, *args):
    return subprocess.run(
        [sys.executable, ROOT / 'demo/draw_scenes.py', '--out', out, *map(str, args)], capture_output=True, text=True
    )


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp('draw') / 'scenes'
    done = draw(out, '--train', 6, '--val', 14)
    assert done.returncode == 0, done.stderr
    return out


def pairs(root):
    return [
        (image, root / 'annotations' / image.parent.name / f'{image.stem}.png')
        for image in sorted(root.glob('images/*/*.jpg'))
    ]


@pytest.mark.slow
def test_the_layout_is_that_of_ade20k(scenes):
    for part, suffix in (('images', 'jpg'), ('annotations', 'png')):
        assert len(list(scenes.glob(f'{part}/training/*.{suffix}'))) == 6
        assert len(list(scenes.glob(f'{part}/validation/*.{suffix}'))) == 14
    assert all(label.exists() for _, label in pairs(scenes))
    assert not list(scenes.parent.glob('.scenes-*'))


def test_labels_fit_the_images_and_show_every_class_of_the_config(scenes):
    seen, sizes = set(), set()
    for image, label in pairs(scenes):
        image, label = cv2.imread(str(image)), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
        assert label.dtype == np.uint8 and label.ndim == 2 and label.shape == image.shape[:2]
        seen |= set(np.unique(label))
        sizes.add(label.shape)
    assert seen - {0} == set(range(1, len(CONFIG.metainfo.classes) + 1))
    assert (384, 512) in sizes and len(sizes) > 1


def test_classes_and_config_have_the_same_names(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'demo')
    from scene_canvas import CLASSES

    assert CLASSES == tuple(CONFIG.metainfo.classes)
    assert len(CONFIG.metainfo.palette) == len(CLASSES)


def test_panoptic_maps_tell_objects_of_the_label_map_apart(scenes):
    cfg = Config.fromfile(ROOT / 'configs/eomt_dinov2-ti_scenes-panoptic.py').train_dataloader.dataset
    cfg.pipeline = [step for step in cfg.pipeline if step.type.startswith(('Load', 'Pack'))]
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = DATASETS.build({**cfg, 'type': 'mmdet.CocoPanopticDataset', 'data_root': str(scenes)})
    things, seen = data.metainfo['thing_classes'], set()
    assert len(data) == 6
    for i in range(len(data)):
        sample = data[i]['data_samples']
        labels = cv2.imread(str(scenes / f'annotations/training/{Path(sample.img_path).stem}.png'), -1)
        found = sample.gt_sem_seg.sem_seg[0].numpy()
        names = np.array([*data.metainfo['classes'], *['none'] * (256 - len(data.metainfo['classes']))])
        # Objects of a few pixels are left out.
        known = found != 255
        assert (names[found][known] == np.array(['none', *CONFIG.metainfo.classes])[labels][known]).all()
        assert known.mean() > (labels > 0).mean() - 0.01
        masks = sample.gt_instances.masks.masks
        assert masks.sum(0).max(initial=0) <= 1 and (masks.sum((1, 2)) >= 32).all()
        for mask, label in zip(masks, sample.gt_instances.labels):
            assert (found[mask > 0] == int(label)).all()
        seen |= {things[label] for label in sample.gt_instances.labels}
        per_class = np.bincount(sample.gt_instances.labels, minlength=5)
        seen |= {'several'} if per_class.max() > 1 else set()
    assert seen == {*things, 'several'}


def test_every_patch_has_texture(scenes):
    for image, _ in pairs(scenes):
        grey = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
        h, w = (n // 16 * 16 for n in grey.shape)
        patches = grey[:h, :w].reshape(h // 16, 16, w // 16, 16).transpose(0, 2, 1, 3)
        deviation = patches.std((2, 3))
        assert (deviation > 0).mean() > 0.99 and np.median(deviation) > 1


@pytest.mark.slow
def test_the_same_seed_draws_the_same_bytes_however_many_are_asked_for(scenes, tmp_path):
    assert draw(tmp_path / 'again', '--train', 3, '--val', 2).returncode == 0
    assert draw(tmp_path / 'other', '--train', 3, '--val', 2, '--seed', 1).returncode == 0
    for image, label in pairs(tmp_path / 'again'):
        for file in (image, label):
            name = file.relative_to(tmp_path / 'again')
            assert file.read_bytes() == (scenes / name).read_bytes()
            assert file.read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_a_second_run_draws_nothing_and_a_smaller_set_is_contained(scenes):
    before = {file: file.stat().st_mtime_ns for file in scenes.rglob('*')}
    assert 'already drawn' in draw(scenes, '--train', 6, '--val', 14).stdout
    assert 'already drawn' in draw(scenes, '--train', 0, '--val', 14).stdout
    assert {file: file.stat().st_mtime_ns for file in scenes.rglob('*')} == before


def test_a_folder_of_the_users_is_not_touched(tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    done = draw(tmp_path, '--train', 1, '--val', 1)
    assert done.returncode == 2 and 'not drawn by this command' in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ['mine.txt']
