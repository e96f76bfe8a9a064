import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from mmtr.inference.model import build_model
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.reducers import BackboneInfo, Random, TokenReducer, build_token_reducer
from mmtr.registry import TOKEN_REDUCERS

from .config_files import DETECTORS, METHODS, ROOT, SEGMENTERS, UPERNETS, method_of, read, reducer_of, without_weights

#: Methods of a training on its own, and the floor of one: not in the table of every size and data set.
TRAINED = [word for word, method in METHODS.items() if method.trained or method is Random]
DATA = ('ade20k', 'pascal-context', 'cityscapes')
#: Ends of the names of configs that have tests of their own.
OWN_TESTS = ('regions', 'heal', 'heal6x')


def test_every_size_head_and_data_set_is_there_plain_and_reduced():
    names = {path.name for path in SEGMENTERS}
    for data in DATA:
        for size in 'tsbl':
            for head in ('', '_linear'):
                # The size is left out where it is the paper's.
                reduced = f'segmenter{head}' if size == 'l' else f'segmenter_vit-{size}{head}'
                assert {f'segmenter_vit-{size}{head}_{data}.py', f'{reduced}_tadapter_{data}.py'} <= names
        assert {f'segmenter_{method}_{data}.py' for method in METHODS if method not in TRAINED} <= names


@pytest.mark.parametrize('path', SEGMENTERS, ids=lambda path: path.stem)
def test_config_is_consistent(path):
    cfg = Config.fromfile(path)
    register_all_modules()
    backbone, head = cfg.model.backbone, cfg.model.decode_head
    assert backbone.type in ('mmtr.VisionTransformer', 'mmtr.EVA02', 'mmtr.DINOv3') and cfg.custom_imports.imports == [
        'mmtr'
    ]
    assert cfg.model.type == 'mmtr.EncoderDecoder'
    assert head.in_channels == head.channels == backbone.embed_dims
    assert tuple(cfg.model.data_preprocessor.size) == tuple(backbone.img_size) == tuple(cfg.crop_size)
    data = cfg.test_dataloader.dataset
    classes = data.metainfo.classes if 'metainfo' in data else DATASETS.get(data.type).METAINFO['classes']
    assert head.num_classes == len(classes)
    if cfg.model.test_cfg.mode == 'slide':
        assert tuple(cfg.model.test_cfg.crop_size) == tuple(cfg.crop_size)
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform.type == 'RandomCrop':
            assert tuple(transform.crop_size) == tuple(cfg.crop_size)
    assert type(reducer_of(cfg)) is method_of(path)


@pytest.mark.parametrize('path', DETECTORS, ids=lambda path: path.stem)
def test_detector_config_is_consistent(path):
    cfg = Config.fromfile(path)
    model, size = cfg.model, tuple(cfg.model.backbone.img_size)
    assert cfg.custom_imports.imports == ['mmtr', 'mmtr.models.detectors']
    assert model.neck.in_channels == model.backbone.embed_dims
    strides = [model.backbone.patch_size * n // 4 for n in (1, 2, 4, 8, 16)]
    assert model.rpn_head.anchor_generator.strides == strides
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        assert extractor.featmap_strides == strides[:4]
    channels = {
        model.neck.out_channels,
        model.rpn_head.in_channels,
        model.roi_head.mask_head.in_channels,
        *(head.in_channels for head in model.roi_head.bbox_head),
    }
    assert len(channels) == 1 and size[0] % model.data_preprocessor.pad_size_divisor == 0
    data = cfg.test_dataloader.dataset
    classes = data.metainfo.classes if 'metainfo' in data else CocoDataset.METAINFO['classes']
    assert {head.num_classes for head in (*model.roi_head.bbox_head, model.roi_head.mask_head)} == {len(classes)}
    crops = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert [tuple(step.crop_size) for step in crops] == [size]
    assert type(reducer_of(cfg)) is method_of(path)


@pytest.mark.parametrize(
    'path',
    [
        p
        for p in SEGMENTERS + DETECTORS + UPERNETS
        if method_of(p) is not TokenReducer and p.stem.split('-')[-1] not in OWN_TESTS
    ],
    ids=lambda path: path.stem,
)
def test_reduced_config_is_its_base_and_one_key(path):
    cfg = Config.fromfile(path)
    base = Config.fromfile(path.parent / path.read_text().split("_base_ = '")[1].split("'")[0])
    reduction = cfg.model.backbone.pop('token_reduction')
    if method_of(path).__name__.lower() in TRAINED:  # its losses and its curriculum
        if method_of(path).trained and path in DETECTORS:
            assert cfg.model.type == f'mmtr.{base.model.type}'
            cfg.model.type = base.model.type
        assert cfg.custom_hooks.pop().type == 'mmtr.ReductionCurriculumHook'
        base.setdefault('custom_hooks', [])
    if 'window_layers' in base.model.backbone:  # windows as long as the grid is whole
        windows = [layer for layer in base.model.backbone.window_layers if layer <= reduction.layers[0]]
        assert cfg.model.backbone.window_layers == windows
        cfg.model.backbone.window_layers = base.model.backbone.window_layers
    assert cfg.to_dict() == base.to_dict()


@pytest.mark.parametrize('name, rate', [('heal', 2e-4), ('heal6x', 5e-4)])
def test_healing_starts_from_the_plain_model_and_trains_its_code_faster(name, rate):
    cfg, base = read(f'segmenter_vit-t_tadapter_camvid-{name}.py'), read('segmenter_vit-t_camvid.py')
    assert [hook.type for hook in cfg.custom_hooks] == ['mmtr.HealingHook']
    reduction = cfg.model.backbone.pop('token_reduction')
    assert cfg.model.to_dict() == base.model.to_dict() and reduction.restore == 'learned'
    cfg.model.backbone.token_reduction = reduction
    model = build_model(cfg)
    rates = {
        id(group['params'][0]): group['lr'] for group in build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    }
    named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert {round(own, 6) for name, own in named.items() if 'token_reducer' in name} == {10 * rate}
    assert {round(own, 6) for name, own in named.items() if 'token_reducer' not in name} == {rate}


def test_cropr_by_regions_is_cropr_whose_heads_learn_faster():
    cfg, base = read('segmenter_vit-t_cropr_camvid-regions.py'), read('segmenter_vit-t_cropr_camvid.py')
    ours, papers = reducer_of(cfg), reducer_of(base)
    assert ours.region == 3 and ours.restoration == 'residual' and papers.region is None
    assert ours.token_schedule((18, 24), 12) == papers.token_schedule((18, 24), 12)
    wrapper, model = cfg.optim_wrapper, build_model(cfg)
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    rate = {id(p): group['lr'] / wrapper.optimizer.lr for group in optimizer.param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        expected = 30 if name.endswith('queries') else 10 if 'token_reducer' in name else 1
        assert rate[id(parameter)] == pytest.approx(expected), name
    cfg.model.backbone.token_reduction = base.model.backbone.token_reduction
    cfg.optim_wrapper = base.optim_wrapper
    assert cfg.to_dict() == base.to_dict()


# tests/with_mmpretrain builds those of classification.
CROPR = [p for p in sorted((ROOT / 'configs').glob('*_cropr_*.py')) if not p.stem.endswith(('_imagenet', '_shapes'))]


@pytest.mark.parametrize('path', CROPR, ids=lambda path: path.stem)
def test_auxiliary_heads_have_the_classes_of_the_main_one(path):
    cfg = Config.fromfile(path)
    # mmseg's ViT cannot be built on the meta device.
    model = without_weights(cfg) if cfg.model.backbone.type == 'mmtr.EVA02' else build_model(cfg)
    head = model.roi_head.mask_head[0] if path in DETECTORS else model.decode_head
    assert model.backbone.token_reducer.num_classes == head.num_classes
    assert isinstance(model, ReductionLosses)


@pytest.mark.parametrize('depth', [12, 24])
def test_compare_all_holds_every_method_at_settings_that_work_at_any_depth(depth):
    reductions = Config.fromfile(ROOT / 'configs/reductions/all_methods.py').reductions
    reducers = [build_token_reducer(cfg.to_dict(), BackboneInfo(depth, 64, 1)) for cfg in reductions.values()]
    assert {type(reducer) for reducer in reducers} == {
        method
        for method in TOKEN_REDUCERS.module_dict.values()
        if not method.trained and method.__module__.startswith('mmtr.')
    }
    assert all(min(reducer.token_schedule((23, 30), depth)) < 690 for reducer in reducers)


@pytest.mark.parametrize(
    'name',
    [
        'segmenter_eva02-s_ade20k.py',
        'segmenter_vit-t_tadapter_ade20k.py',
        'segmenter_vit-t_linear_tadapter_ade20k.py',
        'upernet_swin-t_tadapter_ade20k.py',
    ],
)
def test_config_builds_and_runs(name):
    grid = (16, 24) if 'swin' in name else (4, 6)
    with torch.no_grad():
        assert build_model(read(name))(torch.zeros(1, 3, 64, 96)).shape == (1, 150, *grid)
