"""MaskDINO's configs: that they fit together, and a training and a test step of each kind through the tools."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmtr.checks.coco import check_classes
from mmtr.reducers import Expediting, TokenAdapter
from tests.drawn_coco import METAINFO, PANOPTIC, draw_coco

pytestmark = pytest.mark.usefixtures('scope_of_mmdet')
CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('maskdino_*.py'))
#: Of the release's table of models, in millions.
PARAMETERS = {'maskdino_r50_coco-instance': 52, 'maskdino_swin-l_coco-instance': 223}


def scaled_down(backbone):
    """Swin's stages of fewer channels, so that a test builds it in no time; a ResNet is small as it is."""
    if 'Swin' in backbone.type:
        backbone.update(embed_dims=backbone.embed_dims // 12, num_heads=[1, 2, 4, 8])
        return 12
    return 1


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_consistent(path):
    cfg = Config.fromfile(path)
    model = cfg.model
    assert model.type == 'mmtr.MaskDINO' and cfg.custom_imports.imports == ['mmtr', 'mmtr.models.detectors']
    data = cfg.train_dataloader.dataset
    with DATASETS.switch_scope_and_registry(data.get('_scope_') or cfg.default_scope) as registry:
        check_classes(model, registry.get(data.type), data)
    assert ('ResNet' in model.backbone.type) == ('_r50_' in path.stem)
    first = model.backbone.get('embed_dims', 256)
    assert model.panoptic_head.in_channels == [first * 2**i for i in range(4)]
    semantic, panoptic = ('semantic' in path.stem), ('panoptic' in path.stem)
    assert model.test_cfg.get('semantic_on', False) == semantic and model.test_cfg.instance_on != semantic
    assert model.test_cfg.get('panoptic_on', False) == panoptic
    assert model.data_preprocessor.get('pad_seg', False) == (semantic or panoptic)
    assert semantic or model.data_preprocessor.pad_mask
    pads = model.data_preprocessor.get('batch_augments') or []
    crops = [step for step in data.pipeline if step.type == 'RandomCrop']
    assert [tuple(pad.size) for pad in pads] in ([], [tuple(step.crop_size) for step in crops])
    steps = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    assert steps[-1].end == cfg.train_cfg.max_iters and not steps[-1].by_epoch
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    expected = ['SemSegMetric'] if semantic else ['CocoPanopticMetric'] * panoptic + ['CocoMetric']
    assert [each.type for each in evaluators] == expected


@pytest.mark.slow
@pytest.mark.parametrize('name, millions', PARAMETERS.items())
def test_models_are_as_large_as_the_release_says(name, millions):
    cfg = Config.fromfile(CONFIGS[0].parent / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize(
    'path', [p for p in CONFIGS if '_tadapter_' in p.name or '_expediting_' in p.name], ids=lambda path: path.stem
)
def test_reduced_config_is_its_base_and_one_key(path):
    cfg = Config.fromfile(path)
    base = Config.fromfile(path.parent / path.read_text().split("'")[1])
    reduction = cfg.model.backbone.pop('token_reduction')
    assert cfg.to_dict() == base.to_dict()
    cfg.model.backbone.update(token_reduction=reduction, init_cfg=None)
    scaled_down(cfg.model.backbone)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.model.backbone)
    assert isinstance(backbone.token_reducer.inner, TokenAdapter if 'tadapter' in path.name else Expediting)
    plain, tokens = (
        MODELS.build(dict(cfg.model.backbone, token_reduction=reduced)).token_schedule((256, 256))
        for reduced in (None, reduction)
    )
    stage = sum(cfg.model.backbone.depths[: reduction.stage])
    reduced = [i for i, (a, b) in enumerate(zip(tokens, plain)) if a < b]
    if 'swin-l' in path.name:  # the last 12 of 18 blocks of stage 3
        assert reduced == list(range(stage - 12, stage))
    else:
        assert reduced == [stage - 1]


def small(path, root, work_dir):
    """A config on drawn scenes, small enough for a test; the kinds of all steps and parts stay."""
    cfg = Config.fromfile(path)
    head, backbone = cfg.model.panoptic_head, cfg.model.backbone
    task = next((task for task in ('panoptic', 'semantic') if task in path.stem), 'instances')
    if 'Swin' in backbone.type:
        backbone.update(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=4)
        head.in_channels = [16, 32, 64, 128]
    else:
        backbone.update(depth=18, base_channels=16, stem_channels=16)
        head.in_channels = [16, 32, 64, 128]
    backbone.init_cfg = None
    head.update(channels=64, num_queries=10)
    head.pixel_decoder.update(num_layers=1, feedforward_channels=32)
    head.decoder.update(num_layers=2, feedforward_channels=32)
    head.loss.num_points = 64
    head.update(
        num_things_classes=0 if task == 'semantic' else 2,
        num_stuff_classes=dict(instances=0, panoptic=2, semantic=4)[task],
    )
    for pad in cfg.model.data_preprocessor.get('batch_augments') or []:
        pad.size = (64, 64)
    loaders = cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader
    for loader in loaders:
        loader.update(num_workers=0, persistent_workers=False)
        data = loader.dataset
        for step in data.pipeline:
            sizes = dict(
                Resize=('scale', (96, 96)),
                RandomResize=('scale', (64, 64)),
                RandomCrop=('crop_size', (64, 64)),
                RandomChoiceResize=('scales', [48, 64, 96]),
            )
            if step.type in sizes:
                step[sizes[step.type][0]] = sizes[step.type][1]
        data.data_root = str(root)
        if task == 'semantic':
            data.update(
                type='BaseSegDataset',
                img_suffix='.jpg',
                seg_map_suffix='.png',
                reduce_zero_label=False,
                metainfo=dict(classes=PANOPTIC['classes']),
                data_prefix=dict(img_path='images', seg_map_path='semantic'),
            )
        else:
            data.update(ann_file=f'{task}.json', metainfo=PANOPTIC if task == 'panoptic' else METAINFO)
            data.data_prefix.update(dict(img='images/', **(dict(seg='panoptic/') if task == 'panoptic' else {})))
    for step in [step for loader in loaders for step in loader.dataset.pipeline]:
        if step.type == 'LoadAnnotations' and 'reduce_zero_label' in step:
            step.reduce_zero_label = False
    for name in ('val_evaluator', 'test_evaluator'):
        for each in cfg[name] if isinstance(cfg[name], list) else [cfg[name]]:
            if 'ann_file' in each:
                kind = 'panoptic' if 'seg_prefix' in each else 'instances'
                each.ann_file = str(root / f'{kind}.json')
            if 'seg_prefix' in each:
                each.seg_prefix = str(root / 'panoptic')
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.train_cfg.pop('dynamic_intervals', None)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=2, save_best=None)
    cfg.update(work_dir=str(work_dir))
    cfg.visualizer.name = str(work_dir)
    return cfg


@pytest.mark.parametrize(
    'name, metrics',
    [
        ('maskdino_swin-l_tadapter_coco-panoptic', ['coco_panoptic/PQ', 'coco/segm_mAP']),
        ('maskdino_r50_ade20k-semantic', ['mIoU']),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ('maskdino_r50_coco-instance', ['coco/segm_mAP', 'coco/bbox_mAP']),
                ('maskdino_swin-l_cityscapes-semantic', ['mIoU']),
                ('maskdino_swin-t_tadapter_nuclei', ['coco/segm_mAP']),
            )
        ),
    ],
)
def test_config_trains_and_tests(name, metrics, tmp_path, tool):
    root = draw_coco(tmp_path / 'coco')
    cfg = small(CONFIGS[0].parent / f'{name}.py', root, tmp_path / 'work')
    if 'tadapter' in name:
        cfg.model.backbone.token_reduction.update(layers=(1, 2))
    cfg.dump(tmp_path / 'config.py')
    status, said = tool('train', tmp_path / 'config.py')
    assert status == 0, said
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    *steps, tested = map(json.loads, scalars)
    assert len(steps) == 2 and all(np.isfinite(step['loss']) and step['grad_norm'] > 0 for step in steps)
    assert set(metrics) <= tested.keys()
    status, said = tool(
        'test', tmp_path / 'config.py', tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'test'
    )
    assert status == 0, said
