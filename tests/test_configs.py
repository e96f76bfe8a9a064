import math
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmseg.registry import DATASETS, MODELS
from mmseg.utils import register_all_modules
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmtr import apply_token_reduction
from mmtr.inference.model import build_model
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.reducers import (
    ALGM,
    BackboneInfo,
    Cropr,
    EViT,
    Expediting,
    GridPool,
    Random,
    TokenAdapter,
    TokenReducer,
    ToMe,
    build_token_reducer,
)
from mmtr.registry import TOKEN_REDUCERS

ROOT = Path(__file__).parents[1]
SEGMENTERS = sorted((ROOT / 'configs').glob('segmenter_*.py'))
DINOV2 = sorted((ROOT / 'configs').glob('dinov2-*.py'))
DETECTORS = sorted((ROOT / 'configs').glob('cascade-mask-rcnn_*.py'))
UPERNETS = sorted((ROOT / 'configs').glob('upernet_*.py'))
METHODS = dict(
    algm=ALGM,
    cropr=Cropr,
    evit=EViT,
    expediting=Expediting,
    gridpool=GridPool,
    tadapter=TokenAdapter,
    random=Random,
    tome=ToMe,
)
#: Methods of a training on its own, and the floor of one: not in the table of every size and data set.
TRAINED = ('cropr', 'random')
DATA = ('ade20k', 'pascal-context', 'cityscapes')
STOCK = dict(
    t='segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    s='segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py',
    b='segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py',
    l='segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py',
)


def read(name):
    return Config.fromfile(ROOT / 'configs' / name)


def without_weights(cfg):
    """The model on the meta device: as large as it likes."""
    register_all_modules()
    with torch.device('meta'), DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def reducer_of(cfg):
    backbone = cfg.model.backbone
    return build_token_reducer(
        backbone.get('token_reduction'),
        BackboneInfo(
            backbone.num_layers,
            backbone.embed_dims,
            num_prefix=int(backbone.get('with_cls_token', True)),
            grid=tuple(n // backbone.get('patch_size', 16) for n in backbone.img_size),
        ),
    )


def method_of(path):
    """The class that the name of a config promises."""
    return next((METHODS[part] for part in path.stem.split('_') if part in METHODS), TokenReducer)


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
    assert backbone.type in ('mmtr.VisionTransformer', 'mmtr.EVA02') and cfg.custom_imports.imports == ['mmtr']
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


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_config_is_consistent(path):
    cfg = Config.fromfile(path)
    register_all_modules()
    backbone, head = cfg.model.backbone, cfg.model.decode_head
    assert (backbone.type, head.type, cfg.custom_imports.imports) == ('mmtr.DINOv2', 'mmtr.SimpleDecoder', ['mmtr'])
    assert (head.in_channels, head.channels) == (backbone.embed_dims, 256)
    letter = path.stem.removeprefix('dinov2-').split('_')[0]
    assert backbone.embed_dims == 64 * backbone.num_heads == dict(ti=192, s=384, b=768, l=1024)[letter]
    assert tuple(cfg.model.data_preprocessor.size) == tuple(backbone.img_size) == tuple(cfg.crop_size)
    if letter == 'ti':  # trained from random weights here
        assert not any(n % backbone.patch_size for n in cfg.crop_size)
    else:
        assert tuple(cfg.crop_size) == (518, 518)
    data = cfg.test_dataloader.dataset
    classes = data.metainfo.classes if 'metainfo' in data else DATASETS.get(data.type).METAINFO['classes']
    assert head.num_classes == len(classes)
    if cfg.model.test_cfg.mode == 'slide':
        assert tuple(cfg.model.test_cfg.crop_size) == tuple(cfg.crop_size)
    crops = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert [tuple(step.crop_size) for step in crops] == [tuple(cfg.crop_size)]
    # An infinite sampler would never end an epoch.
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler' and cfg.train_dataloader.batch_size == 10


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_config_is_its_full_twin_and_what_its_name_says(path):
    size, tuning, task = path.stem.split('_', 2)
    cfg = Config.fromfile(path).to_dict()
    model, backbone = cfg['model'], cfg['model']['backbone']
    found = [
        (backbone.pop('peft', None) or {}).pop('type', None),
        (backbone.pop('token_reduction', None) or {}).pop('type', None),
        model.pop('type'),
        model.pop('distillation', None),
    ]
    assert (
        found
        == {
            'full': [None, None, 'mmtr.EncoderDecoder', None],
            'lora': ['LoRA', None, 'mmtr.EncoderDecoder', None],
            'adapter': ['Adapter', None, 'mmtr.EncoderDecoder', None],
            'dar': ['DAR', 'DAR', 'mmtr.EncoderDecoder', None],
            'dar-distill': ['DAR', 'DAR', 'mmtr.DistillationEncoderDecoder', dict(loss_weight=0.1)],
        }[tuning]
    )
    twin = read(f'{size}_full_{task}.py').to_dict()
    del twin['model']['type']
    assert cfg == twin


def test_every_task_is_there_tuned_in_every_way():
    names = {path.stem for path in DINOV2}
    for task in ('duts', 'cod', 'cuhk', 'kvasir', 'isic2017', 'cityscapes'):
        assert {f'dinov2-b_{tuning}_{task}' for tuning in ('full', 'lora', 'dar', 'dar-distill')} <= names
    model = build_model(read('dinov2-b_dar_duts.py'))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(n for name, n in trained.items() if name.startswith('backbone.')) == 2_348_664
    assert {name.split('.')[1] for name in trained if name.startswith('backbone.')} == {'peft', 'token_reducer'}
    assert any(name.startswith('decode_head.') for name in trained)


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_learning_rate_is_that_of_the_paper(path):
    cfg, epoch = Config.fromfile(path), 7
    parameter = torch.nn.Parameter(torch.zeros(1))
    lr = 1e-3 if path.stem.startswith('dinov2-ti') else 1.5e-4
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    optimizer = torch.optim.AdamW([parameter], lr=lr)
    with DefaultScope.overwrite_default_scope('mmengine'):
        schedulers = [
            PARAM_SCHEDULERS.build({**step, 'optimizer': optimizer}, default_args=dict(epoch_length=epoch))
            for step in cfg.param_scheduler
        ]
    warm_up, end = cfg.param_scheduler[0].end * epoch, cfg.train_cfg.max_epochs * epoch
    for step in range(end):
        if step < warm_up:
            expected = 1e-3 + (1 - 1e-3) * step / (warm_up - 1)
        else:
            expected = 1e-6 + (1 - 1e-6) * (1 + math.cos(math.pi * (step - warm_up) / (end - warm_up))) / 2
        assert optimizer.param_groups[0]['lr'] == pytest.approx(lr * expected, rel=1e-3), step
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


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
    [p for p in SEGMENTERS + DETECTORS + UPERNETS if method_of(p) is not TokenReducer and 'regions' not in p.stem],
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
        assert cfg.custom_hooks.pop().type == 'mmtr.PruningCurriculumHook'
        base.setdefault('custom_hooks', [])
    if path in DETECTORS:  # windows as long as the grid is whole
        windows = [layer for layer in base.model.backbone.window_layers if layer <= reduction.layers[0]]
        assert cfg.model.backbone.window_layers == windows
        cfg.model.backbone.window_layers = base.model.backbone.window_layers
    assert cfg.to_dict() == base.to_dict()


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


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*_cropr_*.py')), ids=lambda path: path.stem)
def test_auxiliary_heads_have_the_classes_of_the_main_one(path):
    cfg = Config.fromfile(path)
    # mmseg's ViT cannot be built on the meta device.
    model = without_weights(cfg) if cfg.model.backbone.type == 'mmtr.EVA02' else build_model(cfg)
    head = model.roi_head.mask_head[0] if path in DETECTORS else model.decode_head
    assert model.backbone.token_reducer.num_classes == head.num_classes
    assert isinstance(model, ReductionLosses)


def without_scope(node):
    """mmengine notes in every dict of a packaged config where it came from."""
    if isinstance(node, (list, tuple)):
        return type(node)(without_scope(value) for value in node)
    return {k: without_scope(v) for k, v in node.items() if k != '_scope_'} if isinstance(node, dict) else node


@pytest.mark.parametrize('size', STOCK)
def test_plain_config_is_the_stock_one(size):
    ours, stock = read(f'segmenter_vit-{size}_ade20k.py'), get_config(f'mmseg::segmenter/{STOCK[size]}')
    assert ours.model.backbone.pop('type') == 'mmtr.VisionTransformer'
    assert ours.model.decode_head.pop('type') == 'mmtr.SegmenterMaskTransformerHead'
    assert ours.model.pop('type') == f'mmtr.{stock.model.pop("type")}'
    stock.model.backbone.pop('type')
    stock.model.decode_head.pop('type')
    # The two OpenMMLab stacks name different hosts for the same file.
    assert Path(ours.model.pop('pretrained')).name == Path(stock.model.pop('pretrained')).name
    assert tuple(ours.model.backbone.pop('img_size')) == tuple(stock.model.backbone.pop('img_size'))
    for key in (
        'model',
        'train_dataloader',
        'test_dataloader',
        'optim_wrapper',
        'param_scheduler',
        'train_cfg',
        'test_evaluator',
        'default_hooks',
    ):
        assert without_scope(ours[key]) == without_scope(stock[key]), key


def test_swin_config_is_the_stock_one():
    ours = read('upernet_swin-t_ade20k.py')
    stock = get_config('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py')
    assert ours.model.backbone.pop('type') == 'mmtr.SwinTransformer' and ours.pop('custom_imports').imports == ['mmtr']
    assert stock.model.backbone.pop('type') == 'SwinTransformer'
    assert ours.model.pop('type') == f'mmtr.{stock.model.pop("type")}'
    assert without_scope(ours.to_dict()) == without_scope(stock.to_dict())


def test_swin_lora_config_is_the_plain_one_and_a_key():
    cfg = read('upernet_swin-t_lora_ade20k.py')
    assert cfg.model.backbone.pop('peft') == dict(type='LoRA')
    assert cfg.to_dict() == read('upernet_swin-t_ade20k.py').to_dict()


def test_mask2former_config_is_the_stock_one_and_a_hook():
    ours = read('mask2former_swin-l_tadapter_coco-panoptic.py')
    stock = get_config('mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py')
    (hook,) = ours.pop('custom_hooks')
    assert ours.pop('custom_imports').imports == ['mmtr'] and 'custom_hooks' not in stock
    assert without_scope(ours.to_dict()) == without_scope(stock.to_dict())
    # Four channels a head in place of 32.
    stock.model.backbone.embed_dims, channels = 24, [24, 48, 96, 192]
    stock.model.panoptic_head.in_channels = channels
    model = build_model(stock)
    keys = list(model.state_dict())
    apply_token_reduction(model, hook.token_reduction)
    assert list(model.state_dict()) == keys
    # 800x1344 pixels: in the last 12 of 18 blocks of stage 3, 50x84 tokens, 4x7 windows and 2 rows of 7, are 33x56.
    assert (
        model.backbone.token_schedule((800, 1344))
        == [67200] * 2 + [16800] * 2 + [4200] * 6 + [33 * 56] * 12 + [1050] * 2
    )


@pytest.mark.parametrize('depth', [12, 24])
def test_compare_all_holds_every_method_at_settings_that_work_at_any_depth(depth):
    reductions = Config.fromfile(ROOT / 'configs/reductions/all_methods.py').reductions
    reducers = [build_token_reducer(cfg.to_dict(), BackboneInfo(depth, 64, 1)) for cfg in reductions.values()]
    assert {type(reducer) for reducer in reducers} == {
        method for method in TOKEN_REDUCERS.module_dict.values() if not method.trained
    }
    assert all(min(reducer.token_schedule((23, 30), depth)) < 690 for reducer in reducers)


def test_paper_config_keeps_10_layers_whole_and_49_percent_of_the_tokens_in_the_others():
    schedule = reducer_of(read('segmenter_tadapter_ade20k.py')).token_schedule((40, 40), 24)
    assert schedule == [1600] * 10 + [784] * 14
    reducer = reducer_of(read('segmenter_tadapter_ade20k.py'))
    assert (reducer.score, reducer.metric, reducer.merge, reducer.restoration) == ('max', 'cosine', 'average', 'copy')


@pytest.mark.parametrize(
    'data, side, layer, clusters', [('ade20k', 40, 10, 28), ('cityscapes', 48, 12, 32), ('pascal-context', 30, 14, 20)]
)
def test_expediting_configs_have_the_clusters_of_the_release(data, side, layer, clusters):
    # Its location is the index of the layer after which tokens are clustered: 9, 11, 13.
    reducer = reducer_of(read(f'segmenter_expediting_{data}.py'))
    assert reducer.token_schedule((side, side), 24) == [side**2] * layer + [clusters**2] * (24 - layer)
    assert (reducer.restoration, reducer.restore_at, reducer.normalize) == ('copy', 'after_head', 'l2')
    assert (reducer.n_iters, reducer.window, reducer.temperature) == (5, 5, 0.02)
    assert (reducer.k, reducer.recon_temperature) == (20, 0.02)


def test_expediting_config_of_a_swin_has_the_temperatures_of_the_release():
    reduction = read('maskdino_swin-l_expediting_coco-instance.py').model.backbone.token_reduction
    assert reduction.temperature == reduction.recon_temperature == 0.01 and reduction.restore == 'copy'


def test_evit_config_reduces_in_the_layers_of_the_paper():
    reducer = reducer_of(read('segmenter_evit_ade20k.py'))
    assert reducer.layers == (7, 13, 19) and reducer.keep_rate == 0.8


def test_eva02_config_has_the_weights_of_the_release():
    cfg = read('segmenter_eva02-l_ade20k.py')
    model = without_weights(cfg)
    # What the log of the release says of its unpruned model.
    assert sum(parameter.numel() for parameter in model.parameters()) == 304393302
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 161728
    rates = [layer.attn.branch_dropout.drop_prob for layer in model.backbone.layers]
    assert rates[0] == rates[-1] == 0 and rates[-2] == pytest.approx(0.2 * 22 / 23)


def test_cropr_configs_have_the_counts_of_the_release():
    release = [1025, *(1025 - 41 - 40 * k for k in range(22)), 1025]
    counts = reducer_of(read('segmenter_eva02-l_cropr_ade20k.py')).token_schedule((32, 32), 24)
    assert [n + 1 for n in counts] == release and release[-2] == 144
    counts = reducer_of(read('segmenter_eva02-s_cropr_ade20k.py')).token_schedule((32, 32), 12)
    assert [counts[0] + 1, counts[-2] + 1, counts[-1] + 1] == [1025, 144, 1025]
    counts = reducer_of(read('segmenter_eva02-l_cropr_cityscapes.py')).token_schedule((48, 48), 24)
    assert counts[-2] / 48**2 == pytest.approx(144 / 1024, abs=8 / 48**2)


@pytest.mark.parametrize('name, published', [('', 2790), ('_cropr', 1273)])
def test_detector_has_the_reported_gflops(name, published):
    cfg = read(f'cascade-mask-rcnn_eva02-l{name}_coco.py').model.backbone
    reduction = cfg.pop('token_reduction', None)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        backbone = MODELS.build(cfg).eval()
    if name:
        backbone.set_token_reduction({**reduction, 'deploy': True})
    with fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, 1536, 1536))
    # Those reported are of the linear layers alone: the counter behind them did not know fused attention.
    counts = counter.get_flop_counts()['Global']
    assert round((counts[torch.ops.aten.addmm] + counts[torch.ops.aten.convolution]) / 2e9) == published
    if name:
        schedule = backbone.token_reducer.token_schedule((96, 96), 24)
        assert schedule[5] == schedule[-1] == 9216 and schedule[-2] / 9216 == pytest.approx(0.03, abs=0.005)


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


def test_dinov2_config_builds_and_runs():
    # 4 x the 5x7 patches of an image that is padded to them.
    with torch.no_grad():
        assert build_model(read('dinov2-b_full_cityscapes.py'))(torch.zeros(1, 3, 57, 98)).shape == (1, 19, 20, 28)
