"""EoMT from random weights to a trained and tested model, plain and reduced: drawn scenes, and real nuclei."""

import json

import numpy as np
import pytest

from .maskdino_runs import run_cfg
from .test_maskdino_nuclei import NUCLEI, nuclei  # noqa: F401  a fixture

PLAIN, REDUCED = None, dict(type='TokenAdapter', layers=(1, 3), ratio=0.4)
pytestmark = pytest.mark.slow


def run(cfg, tmp_path, tool, side, patch, iterations, **head):
    """Train an EoMT in the place of a run's model, and test it again; losses and the results of the test."""
    cfg.model = dict(
        type='mmtr.EoMT',
        data_preprocessor=dict(
            type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=side, pad_mask=True, pad_seg=True
        ),
        backbone=dict(
            type='mmtr.DINOv2',
            img_size=side,
            patch_size=patch,
            num_registers=1,
            embed_dims=96,
            num_layers=6,
            num_heads=3,
            layer_scale_init_value=1.0,
            token_reduction=head.pop('reduction'),
        ),
        panoptic_head=dict(
            type='mmtr.EoMTHead',
            in_channels=96,
            num_query_layers=2,
            num_upscale=patch // 8,
            num_points=512,
            **{**dict(num_things_classes=2, num_stuff_classes=0, num_queries=20), **head},
        ),
        test_cfg=cfg.model.test_cfg,
    )
    cfg.custom_hooks = [dict(type='mmtr.MaskAnnealingHook')]
    cfg.optim_wrapper.update(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    cfg.param_scheduler = [dict(type='mmtr.TwoStagePolyLR', warmup=(5, 10), power=0.9, by_epoch=False)]
    cfg.optim_wrapper.update(constructor='mmtr.LayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.9))
    path, work = tmp_path / 'config.py', tmp_path / 'work'
    cfg.dump(path)
    status, said = tool('train', path)
    assert status == 0, said
    scalars = next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()
    *steps, tested = map(json.loads, scalars)
    losses = [step['loss_cls'] + step['loss_mask'] + step['loss_dice'] for step in steps]
    assert len(losses) == iterations and all('d1.loss_mask' in step for step in (steps[0], steps[-1]))
    status, said = tool('test', path, work / f'iter_{iterations}.pth', '--work-dir', tmp_path / 'test')
    assert status == 0, said
    again = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    print(f'loss {np.mean(losses[:5]):.2f} to {np.mean(losses[-5:]):.2f}, {tested}')
    return losses, tested, again


@pytest.mark.parametrize('reduction', [PLAIN, REDUCED], ids=['plain', 'reduced'])
@pytest.mark.parametrize(
    'task, metric, least', [('instances', 'coco/segm_mAP', 0.2), ('panoptic', 'coco_panoptic/PQ', 30)]
)
def test_drawn_scenes_are_learned(coco, tmp_path, tool, task, metric, least, reduction):
    iterations = 120
    cfg = run_cfg(coco, tmp_path / 'work', task, iterations)
    stuff = 2 * (task == 'panoptic')
    cfg.model.test_cfg = dict(instance_on=not stuff, panoptic_on=bool(stuff), object_mask_thr=0.5, iou_thr=0.5)
    losses, tested, again = run(cfg, tmp_path, tool, 64, 8, iterations, num_stuff_classes=stuff, reduction=reduction)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert tested[metric] > least and again[metric] == pytest.approx(tested[metric])


@pytest.mark.skipif(not NUCLEI.exists(), reason='../shared is not there')
@pytest.mark.parametrize('reduction', [PLAIN, REDUCED], ids=['plain', 'reduced'])
def test_a_few_images_of_nuclei_are_learned(nuclei, tmp_path, tool, reduction):  # noqa: F811
    iterations = 200
    cfg = run_cfg(nuclei, tmp_path / 'work', 'instances', iterations)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[loader].dataset.metainfo = dict(classes=('nucleus',))
    cfg.model.test_cfg = dict(instance_on=True, panoptic_on=False)
    head = dict(num_things_classes=1, num_queries=40, reduction=reduction)
    losses, tested, again = run(cfg, tmp_path, tool, 256, 16, iterations, **head)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert tested['coco/segm_mAP'] > 0.15
    assert again['coco/segm_mAP'] == pytest.approx(tested['coco/segm_mAP'])
