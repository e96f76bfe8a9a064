"""Twins' PCPVT and SVT against mmseg's, whole and with a stage on a coarser grid."""

import copy
import math
from pathlib import Path

import mmseg
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmseg.models.backbones import twins
from mmseg.models.utils import nlc_to_nchw
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import nn

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.models.backbones import PCPVT, SVT

from . import test_pyramid
from .in_double import CLOSE, assert_alike, images, pair_of

SMALL = {
    PCPVT: dict(embed_dims=[8, 16, 16, 32], depths=[1, 2, 3, 2], num_heads=[1, 2, 2, 4], qkv_bias=True),
    # Three stages, as by default.
    SVT: dict(embed_dims=[8, 16, 32], depths=[2, 3, 4], num_heads=[1, 2, 4], qkv_bias=True, drop_path_rate=0.0),
}
STOCK = {PCPVT: twins.PCPVT, SVT: twins.SVT}
both = pytest.mark.parametrize('host', SMALL, ids=lambda host: host.__name__)


def pair(host, **kwargs):
    return pair_of(STOCK[host], host, {**SMALL[host], **kwargs})


@both
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(qkv_bias=False, out_indices=(1, 2), norm_after_stage=True),
        dict(norm_after_stage=False, norm_cfg=dict(type='LN', eps=1e-3), mlp_ratios=[2, 3, 1, 2]),
        dict(sr_ratios=[1, 1, 1, 1], patch_sizes=[7, 3, 3, 3]),
    ],
    ids=str,
)
# Of the 7x7 windows in stages of an SVT: no padding at 112x112, then in rows, in columns, in both.
@pytest.mark.parametrize('size', [(112, 112), (64, 112), (112, 80), (64, 96), (77, 131)], ids=str)
def test_outputs_are_the_stock_ones(host, kwargs, size):
    theirs, ours = pair(host, **kwargs)
    x = images(*size)
    with torch.no_grad():
        expected = theirs(x)
        assert_alike(ours(x), expected)
        for backend in ('auto', 'math'):
            assert_alike(apply_token_reduction(copy.deepcopy(theirs), None, backend)(x), expected)


@pytest.mark.parametrize('windows', [[1, 2, 3], [6, 30, 5]], ids=str)
def test_windows_of_any_size(windows):
    theirs, ours = pair(SVT, windiow_sizes=windows)
    with torch.no_grad():
        assert_alike(ours(images(72, 100)), theirs(images(72, 100)))


@both
@pytest.mark.parametrize('size', [(64, 112), (64, 96)], ids=str)
def test_training_is_that_of_stock(host, size):
    gradients = []
    for model in pair(host):
        sum(out.square().mean() for out in model.train()(images(*size))).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in gradients[0].items():
        if grad is not None:  # a layer of stock for a fourth stage that an SVT has not
            torch.testing.assert_close(gradients[1][name], grad, **CLOSE, msg=name)


@both
def test_drop_path_is_drawn_twice_as_in_stock(host):
    outs = []
    for model in pair(host, drop_path_rate=0.5):
        torch.manual_seed(5)
        outs.append(model.train()(images(64, 64)))
    assert_alike(outs[1], outs[0])


@both
def test_fresh_weights_are_drawn_as_by_stock(host):
    states = []
    for kind in (STOCK[host], host):
        torch.manual_seed(0)
        model = kind(**SMALL[host])
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@both
def test_weights_of_a_file_are_loaded(host, tmp_path):
    path = str(tmp_path / 'twins.pth')
    theirs, _ = pair(host)
    torch.save(dict(state_dict=theirs.state_dict()), path)
    for given in (dict(init_cfg=dict(type='Pretrained', checkpoint=path)), dict(pretrained=path)):
        ours = host(**SMALL[host], **given)
        ours.init_weights()
        assert all(torch.equal(ours.state_dict()[name], value.float()) for name, value in theirs.state_dict().items())


def pooled_by_hand(model, x, stage, cells, span):
    """mmseg's loop, with its blocks ``span`` of one stage run on a grid that is pooled, and upsampled, by hand."""
    for i, blocks in enumerate(model.layers):
        x, grid = model.patch_embeds[i](x)
        for j, block in enumerate(blocks):
            if (i, j) == (stage, span[0]):
                before = x
                x = first = F.adaptive_avg_pool2d(nlc_to_nchw(x, grid), cells).flatten(2).transpose(1, 2)
            x = block(x, cells if i == stage and span[0] <= j < span[1] else grid)
            if (i, j) == (stage, span[1] - 1):
                change = F.interpolate(nlc_to_nchw(x - first, cells), size=grid, mode='bilinear', align_corners=False)
                x = before + change.flatten(2).transpose(1, 2)
            if j == 0:
                x = model.position_encodings[i](x, grid)
        x = nlc_to_nchw(model.norm_list[i](x) if model.norm_after_stage else x, grid)
        yield x


@pytest.mark.parametrize(
    'host, stage, span, size, cells',
    [
        (PCPVT, 3, (1, 3), (128, 192), (4, 6)),
        (PCPVT, 2, (1, 2), (192, 128), (12, 8)),
        # The windows of the coarser grid: padding in both, one and no direction.
        (SVT, 3, (1, 3), (160, 192), (5, 6)),
        (SVT, 3, (2, 4), (224, 288), (7, 9)),
        (SVT, 3, (2, 3), (224, 224), (7, 7)),
        (SVT, 2, (1, 3), (160, 224), (10, 14)),
    ],
    ids=str,
)
def test_a_stage_on_a_coarser_grid_is_stock_on_that_grid(host, stage, span, size, cells):
    theirs, ours = pair(host, norm_after_stage=host is SVT)
    ours.set_token_reduction(dict(type='GridPool', stage=stage, ratio=0.5, layers=span))
    before = sum(SMALL[host]['depths'][: stage - 1])
    counts = ours.token_schedule(size)[before + span[0] : before + span[1]]
    assert counts == [math.prod(cells)] * (span[1] - span[0])
    with torch.no_grad():
        for out, same in zip(ours(images(*size)), pooled_by_hand(theirs, images(*size), stage - 1, cells, span)):
            torch.testing.assert_close(out, same, **CLOSE)


@both
def test_lora_merges(host):
    stock, _ = pair(host)
    model = apply_peft(copy.deepcopy(stock), dict(type='LoRA', rank=2, targets=['qkv', 'proj', 'fc1', 'fc2']))
    assert [len(each) for each in model.peft.layers] == [4] * sum(SMALL[host]['depths'])
    for low_rank in (module for each in model.peft.layers for module in each.values()):
        nn.init.normal_(low_rank.up.weight, std=0.3)
    stock.load_state_dict(model.peft.merged_state_dict(model), strict=True)
    with torch.no_grad():
        for out, same in zip(model.eval()(images(64, 96)), stock(images(64, 96))):
            torch.testing.assert_close(out, same, **CLOSE)


def test_outputs_of_stages_that_are_not_there_are_none_as_in_stock():
    # By default mmseg's SVT has three stages and names the outputs of four.
    theirs, ours = pair(SVT)
    assert theirs.out_indices == (0, 1, 2, 3) and ours.out_indices == (0, 1, 2)
    assert apply_token_reduction(theirs, None).out_indices == (0, 1, 2)
    assert theirs.out_indices == (0, 1, 2, 3), 'the stock model is as it was'


@both
@pytest.mark.parametrize(
    'reduction',
    [
        dict(type='GridPool', layers=(0, 2)),
        dict(type='GridPool', layers=(0, 1), ratio=(0.0, 0.001)),
        dict(type='Random', layer=0),
        dict(type='Expediting', layer=0, grid=100),
        dict(type='TokenAdapter', layers=(0, 3)),
    ],
    ids=str,
)
def test_nothing_is_reduced_before_positions_are_there(host, reduction):
    message = (
        rf'token_reduction of type {reduction["type"]} begins before block 0 of stage 3, but a {host.__name__} encodes '
        'positions after that block, .*: begin before block 1 or later'
    )
    with pytest.raises(UserError, match=message):
        host(**SMALL[host], token_reduction=reduction)
    with pytest.raises(UserError, match=message):
        apply_token_reduction(pair(host)[0], reduction)


@pytest.mark.parametrize(
    'reduction',
    [
        dict(type='GridPool', layers=(0, 2), ratio=0.0),
        dict(type='TokenAdapter', layers=(0, 3), per_layer=2),  # which takes none before the first layer
    ],
    ids=str,
)
def test_a_span_that_reduces_nothing_at_its_begin_may_begin_at_0(reduction):
    model = PCPVT(**SMALL[PCPVT], token_reduction=dict(reduction, stage=3))
    with torch.no_grad():
        assert all(out.isfinite().all() for out in model.double().eval()(images(128, 160)))


@pytest.mark.parametrize(
    'host, kwargs, message',
    [
        (PCPVT, dict(num_heads=[1, 2, 4]), r'num_heads=\(1, 2, 4\) has 3 values for 4 stages: give one for each'),
        (SVT, dict(windiow_sizes=[7, 7]), r'windiow_sizes=\(7, 7\) has 2 values for 3 stages'),
        (SVT, dict(out_indices=(3,)), 'out_indices goes to 3, but there are 3 stages: choose up to 2'),
        (PCPVT, dict(num_heads=[3, 2, 2, 4]), 'embed_dims=8 and num_heads=3 do not fit'),
        (PCPVT, dict(token_reduction=dict(type='GridPool', stage=1)), 'begins before block 0 of stage 1'),
        (SVT, dict(token_reduction=dict(type='ToMe')), "type='ToMe' cannot work in a backbone of stages"),
        (SVT, dict(token_reduction=dict(type='SegFormerPlusPlus')), 'attention within windows or'),
        (PCPVT, dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), 'both say where'),
    ],
    ids=str,
)
def test_mistakes_are_told_when_it_is_built(host, kwargs, message):
    with pytest.raises(UserError, match=message):
        host(**{**SMALL[host], **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['twins_pcpvt-s_fpn_fpnhead_8xb4-80k_ade20k-512x512', 'twins_svt-s_uperhead_8xb2-160k_ade20k-512x512']
)
def test_stock_configs_take_a_reduction(name):
    register_all_modules()
    cfg = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/twins' / f'{name}.py').model
    cfg.backbone.init_cfg = None
    model = MODELS.build(cfg).eval()
    x = test_pyramid.images(128, 128, 1)
    with torch.no_grad():
        plain = model(x)
        apply_token_reduction(model, None)
        torch.testing.assert_close(model(x), plain, atol=1e-4, rtol=1e-4)
        apply_token_reduction(model, dict(type='GridPool', stage=3, ratio=0.5))
        reduced = model(x)
    assert reduced.shape == plain.shape and not torch.allclose(reduced, plain, atol=1e-4)
