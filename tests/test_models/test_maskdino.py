"""MaskDINO from drawn scenes to a trained and tested model: instances, panoptic and semantic maps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from PIL import Image

from mmtr import UserError
from tests.drawn_coco import SIZE

from .maskdino_runs import BACKBONES, SWIN, build, model_cfg, run_cfg

pytestmark = pytest.mark.usefixtures('scope_of_mmdet')


@pytest.mark.parametrize(
    'head, said',
    [
        (dict(channels=40), 'channels=40 must be a multiple of 32'),
        (dict(decoder=dict(num_heads=5)), 'of the number of heads, 5 and 8'),
        (dict(initial_boxes='mask'), "initial_boxes='mask' is unknown: choose 'no', 'mask2box', 'bitmask'"),
        (dict(two_stage=False), "initial_boxes='bitmask' needs two_stage=True"),
        (dict(pixel_decoder=dict(num_encoder_levels=5)), 'num_encoder_levels=5, but the backbone has 4 maps'),
        (dict(pixel_decoder=dict(feature_order='high')), "feature_order='high' is unknown: choose 'low2high' or"),
    ],
)
def test_settings_that_cannot_work_are_refused(head, said):
    with pytest.raises(UserError, match=said):
        build(**head)


@pytest.mark.slow
def test_a_label_that_is_no_class_stops_the_run(coco, tmp_path, tool):
    for name in (coco / 'semantic').iterdir():
        Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(name)
    run_cfg(coco, tmp_path / 'work', 'semantic', iterations=1).dump(tmp_path / 'config.py')
    status, said = tool('train', tmp_path / 'config.py')
    assert status == 2 and 'holds the label 9, but labels must be 0 to 3' in said


def use_category_99(data, backbone):
    path = Path(data.data_root, data.ann_file)
    content = json.loads(path.read_text())
    content['annotations'][0]['category_id'] = 99
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'task, spoil, said',
    [
        (
            'instances',
            use_category_99,
            "instances.json' has annotations of category 99, which is none of its 2 categories",
        ),
        (
            'instances',
            lambda data, backbone: data.update(metainfo=dict(classes=('box', 'ball'))),
            "which does not have 'ball': set metainfo=dict(classes=...) of the data set",
        ),
        (
            'instances',
            lambda data, backbone: data.update(ann_file='panoptic.json'),
            "panoptic.json' holds panoptic segments, but CocoDataset reads instances",
        ),
        (
            'panoptic',
            lambda data, backbone: data.update(ann_file='instances.json'),
            "instances.json' holds instances, but CocoPanopticDataset reads panoptic",
        ),
        (
            'panoptic',
            lambda data, backbone: Path(data.data_root, 'panoptic', '1.png').unlink(),
            '1 of 4 panoptic label maps are not there',
        ),
        (
            'instances',
            lambda data, backbone: backbone.token_reduction.update(ratio=0.9),
            'token_reduction.ratio=0.9 takes 4 of 4 rows of the 4x4 patch grid',
        ),
    ],
)
def test_what_cannot_work_stops_the_run_in_one_sentence(coco, tmp_path, tool, task, spoil, said):
    cfg = run_cfg(coco, tmp_path / 'work', task, iterations=1, backbone='reduced')
    spoil(cfg.train_dataloader.dataset, cfg.model.backbone)
    cfg.dump(tmp_path / 'config.py')
    status, words = tool('train', tmp_path / 'config.py')
    assert status == 2 and said in words and words.count('\n') == 1
    assert not (tmp_path / 'work').exists()


def test_the_reduced_swin_has_fewer_tokens_at_the_size_of_the_scenes():
    plain, reduced = (MODELS.build(cfg).token_schedule((SIZE, SIZE)) for cfg in (SWIN, BACKBONES['reduced']))
    assert plain == [256, 256, 64, 64, 16, 16, 4, 4] and reduced == [256, 64, *plain[2:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    'task, backbone, iterations, metric, least',
    [
        ('instances', 'resnet', 100, 'coco/segm_mAP', 0.05),
        ('panoptic', 'resnet', 100, 'coco_panoptic/PQ', 10),
        ('semantic', 'resnet', 100, 'mIoU', 40),
        ('instances', 'swin', 60, 'coco/segm_mAP', 0.5),
        ('instances', 'reduced', 60, 'coco/segm_mAP', 0.5),
        ('panoptic', 'swin', 60, 'coco_panoptic/PQ', 50),
        ('panoptic', 'reduced', 60, 'coco_panoptic/PQ', 50),
    ],
)
def test_a_model_trains_from_scratch_and_tests_through_the_tools(
    coco, tmp_path, tool, task, backbone, iterations, metric, least
):
    cfg, path = run_cfg(coco, tmp_path / 'work', task, iterations, backbone), tmp_path / 'config.py'
    cfg.dump(path)
    status, said = tool('train', path)
    assert status == 0, said
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    *steps, tested = map(json.loads, scalars)
    losses = [step['loss'] for step in steps]
    assert len(losses) == iterations and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert tested[metric] > least
    status, said = tool('test', path, tmp_path / 'work' / f'iter_{iterations}.pth', '--work-dir', tmp_path / 'test')
    assert status == 0, said
    again = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    assert again[metric] == pytest.approx(tested[metric])


def test_no_weight_is_left_to_what_memory_held():
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills with NaN
    try:
        model = MODELS.build(model_cfg())
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())
