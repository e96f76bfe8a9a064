"""Configs are the stock ones and a key, and have the numbers of papers and releases."""

from pathlib import Path

import pytest
import torch
from mmengine.hub import get_config
from mmseg.registry import MODELS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmtr import apply_token_reduction
from mmtr.inference.model import build_model

from .config_files import read, reducer_of, without_weights

STOCK = dict(
    t='segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py',
    s='segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py',
    b='segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py',
    l='segmenter_vit-l_mask_8xb1-160k_ade20k-512x512.py',
)


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


@pytest.mark.slow
def test_cropr_configs_have_the_counts_of_the_release():
    release = [1025, *(1025 - 41 - 40 * k for k in range(22)), 1025]
    counts = reducer_of(read('segmenter_eva02-l_cropr_ade20k.py')).token_schedule((32, 32), 24)
    assert [n + 1 for n in counts] == release and release[-2] == 144
    counts = reducer_of(read('segmenter_eva02-s_cropr_ade20k.py')).token_schedule((32, 32), 12)
    assert [counts[0] + 1, counts[-2] + 1, counts[-1] + 1] == [1025, 144, 1025]
    counts = reducer_of(read('segmenter_eva02-l_cropr_cityscapes.py')).token_schedule((48, 48), 24)
    assert counts[-2] / 48**2 == pytest.approx(144 / 1024, abs=8 / 48**2)


@pytest.mark.slow
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
