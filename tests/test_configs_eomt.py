"""EoMT's configs: models of the published sizes, the release's schedule, and reduced twins that are one key away."""

import functools

import pytest
import torch
from mmdet.registry import DATASETS as DETECTION
from mmengine.config import Config
from mmseg.registry import DATASETS as SEGMENTATION

from mmtr.checks.config import check_config
from mmtr.engine.hooks import MaskAnnealingHook
from mmtr.registry import HOOKS

from .config_files import ROOT, read, without_weights

NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('eomt_*.py'))
PLAIN = [name for name in NAMES if '_tadapter_' not in name]
RELEASED = [name for name in PLAIN if '-ti_' not in name]
#: Millions of parameters that were measured of the release's models.
PARAMETERS = {
    'eomt_dinov2-s_coco-panoptic-640': 23.98,
    'eomt_dinov2-b_coco-panoptic-640': 93.66,
    'eomt_dinov2-l_coco-panoptic-640': 316.70,
    'eomt_dinov2-l_coco-panoptic-1280': 321.61,
    'eomt_dinov2-l_ade20k-semantic': 316.02,
    'eomt_dinov2-l_cityscapes-semantic': 319.03,
    'eomt_dinov3-s_coco-panoptic-640': 23.36,
    'eomt_dinov3-b_coco-panoptic-640': 92.43,
    'eomt_dinov3-l_coco-panoptic-640': 315.03,
    'eomt_dinov3-l_coco-panoptic-1280': 315.03,
    'eomt_dinov3-l_ade20k-semantic': 314.95,
}
STEPS = dict(coco=88692, ade20k=39120, cityscapes=19902)
#: The windows of masks in the release's configs: (starts, ends).
DINOV2 = ((14782, 29564, 44346, 59128), (29564, 44346, 59128, 73910))
WINDOWS = {
    'eomt_dinov2-l_coco-panoptic-640': DINOV2,
    'eomt_dinov2-l_coco-instance-1280': DINOV2,
    'eomt_dinov3-l_coco-instance-640': DINOV2,
    'eomt_dinov2-b_coco-panoptic-640': ((29564, 73910, 118256), (59128, 103474, 147820)),
    'eomt_dinov2-l_ade20k-panoptic-640': ((6520, 13040, 19560, 26080), (13040, 19560, 26080, 32600)),
    'eomt_dinov2-l_cityscapes-semantic': ((3317, 6634, 9951, 13268), (6634, 9951, 13268, 16585)),
    'eomt_dinov3-s_coco-panoptic-640': ((0, 73910, 118256), (3000, 103474, 147820)),
    'eomt_dinov3-l_coco-panoptic-1280': ((0, 29564, 44346, 59128), (3000, 44346, 59128, 73910)),
    'eomt_dinov3-l_ade20k-semantic': ((0, 6520, 9780, 13040), (3000, 9780, 13040, 16300)),
}


@pytest.mark.parametrize('name', RELEASED)
def test_model_and_data_fit(name, monkeypatch):
    cfg = read(f'{name}.py')
    # mmseg's ViT reads its drop path rates, which the meta device cannot.
    monkeypatch.setattr(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))
    check_config(cfg, ['train_dataloader', 'val_dataloader'])
    model = without_weights(cfg)
    if name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.01)
    head = model.decode_head if 'semantic' in name else model.panoptic_head
    data = cfg.test_dataloader.dataset.type
    classes = (SEGMENTATION if 'semantic' in name else DETECTION).get(data).METAINFO
    assert head.num_classes == len(classes['classes'])
    if 'panoptic' in name:
        assert head.num_things_classes == len(classes['thing_classes'])
    assert head.num_query_layers == (4 if '-l_' in name else 3) and head.num_queries == (
        100 if 'semantic' in name else 200
    )


@pytest.mark.parametrize('name', RELEASED)
def test_schedule(name):
    cfg, dinov3 = read(f'{name}.py'), 'dinov3' in name
    steps = STEPS[name.split('_')[2].split('-')[0]]
    steps = 2 * steps if '-l_' not in name else steps // 2 if dinov3 and 'ade20k' in name else steps
    assert cfg.train_cfg.max_iters == steps
    wrapper, (scheduler,), (hook,) = cfg.optim_wrapper, cfg.param_scheduler, cfg.custom_hooks
    assert wrapper.optimizer.lr == (2e-4 if dinov3 else 1e-4) and wrapper.optimizer.weight_decay == 0.05
    assert tuple(scheduler.warmup) == ((2000, 3000) if dinov3 else (500, 1000)) and 'end' not in scheduler
    layers = (4 if '-l_' in name else 3) if dinov3 else 1
    rate = 1.0 if dinov3 and 'ade20k' in name else 0.8
    assert wrapper.paramwise_cfg == dict(decay_rate=rate, num_full_layers=layers, decay_vectors=True)
    if name in WINDOWS:
        starts, ends = zip(*HOOKS.build(hook)._windows(len(WINDOWS[name][0]), steps))
        assert (starts, ends) == WINDOWS[name]
    assert isinstance(HOOKS.build(hook), MaskAnnealingHook)


@pytest.mark.parametrize('name', PLAIN)
def test_the_reduced_twin_is_one_key_away_and_ends_before_the_queries(name):
    reduced = read(f'{name.replace("_", "*", 1).replace("_", "_tadapter_", 1).replace("*", "_")}.py')
    layers = reduced.model.backbone.pop('token_reduction').layers
    head = reduced.model.get('panoptic_head') or reduced.model.decode_head
    assert layers[1] <= reduced.model.backbone.num_layers - head.num_query_layers
    assert reduced.to_dict() == Config.fromfile(ROOT / 'configs' / f'{name}.py').to_dict()


def test_every_size_is_there():
    assert len(NAMES) == 2 * len(PLAIN) and {*PARAMETERS, *WINDOWS} <= {*PLAIN}
