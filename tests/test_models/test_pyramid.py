"""Backbones with spatial reduction against the stock ones, whole and with a stage on a coarser grid."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.backbones import MixVisionTransformer as Stock
from mmseg.models.utils import nlc_to_nchw
from torch import nn

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.models.backbones import MixVisionTransformer

SMALL = dict(embed_dims=8, num_layers=[1, 1, 3, 2], num_heads=[1, 2, 4, 4])


def filled(model):
    """Weights under which a mistake would show."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        elif 'norm' not in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def twins(**kwargs):
    """A stock backbone with weights that matter, and ours with the same."""
    theirs, ours = filled(Stock(**{**SMALL, **kwargs})), MixVisionTransformer(**{**SMALL, **kwargs})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


def images(height, width, count=2):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(qkv_bias=False, out_indices=(1, 3)),
        dict(sr_ratios=[1, 1, 1, 1]),
        dict(sr_ratios=[8, 5, 3, 2], mlp_ratio=2),
        dict(act_cfg=dict(type='ReLU'), norm_cfg=dict(type='LN', eps=1e-3)),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(64, 64), (64, 96), (77, 131), (90, 64)], ids=str)
def test_outputs_are_the_stock_ones(kwargs, size):
    theirs, ours = twins(**kwargs)
    with torch.no_grad():
        outs, expected = ours(images(*size)), theirs(images(*size))
        assert len(outs) == len(expected)
        for found in (outs, apply_token_reduction(copy.deepcopy(theirs), None)(images(*size))):
            for out, same in zip(found, expected):
                torch.testing.assert_close(out, same, atol=1e-5, rtol=1e-5)
                assert out.stride() == same.stride()


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_is_that_of_stock(with_cp):
    theirs, ours = twins(with_cp=with_cp)
    gradients = []
    for model in (theirs, ours):
        sum(out.square().mean() for out in model.train()(images(64, 96).requires_grad_())).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_drop_path_is_drawn_as_in_stock():
    theirs, ours = twins(drop_path_rate=0.5)
    outs = []
    for model in (theirs, ours):
        torch.manual_seed(5)
        outs.append(model.train()(images(64, 64)))
    for out, same in zip(*outs):
        torch.testing.assert_close(out, same, atol=1e-5, rtol=1e-5)


def pooled_by_hand(model, x, stage, cells, span, copied):
    """mmseg's loop, with its blocks ``span`` of one stage run on a grid that is pooled, and upsampled, by hand."""
    for i, (embed, blocks, norm) in enumerate(model.layers):
        x, grid = embed(x)
        for j, block in enumerate(blocks):
            if (i, j) == (stage, span[0]):
                before = x
                pooled = F.adaptive_avg_pool2d(nlc_to_nchw(x, grid), cells)
                x = first = pooled.flatten(2).transpose(1, 2)
            x = block(x, cells if i == stage and span[0] <= j < span[1] else grid)
            if (i, j) == (stage, span[1] - 1):
                change = nlc_to_nchw(x if copied else x - first, cells)
                back = F.interpolate(change, size=grid, mode='bilinear', align_corners=False)
                x = back.flatten(2).transpose(1, 2) + (0 if copied else before)
        x = nlc_to_nchw(norm(x), grid)
        yield x


@pytest.mark.parametrize('restore', ['copy', 'residual'])
@pytest.mark.parametrize(
    'stage, span, size, cells',
    [(3, (1, 3), (128, 160), (4, 6)), (3, (0, 1), (96, 96), (4, 4)), (1, (0, 1), (64, 96), (8, 16))],
    ids=str,
)
def test_a_stage_on_a_coarser_grid_is_stock_on_that_grid(restore, stage, span, size, cells):
    theirs, ours = twins()
    ours.set_token_reduction(dict(type='GridPool', stage=stage, ratio=0.35, layers=span, restore=restore))
    with torch.no_grad():
        expected = list(pooled_by_hand(theirs, images(*size), stage - 1, cells, span, restore == 'copy'))
        for out, same in zip(ours(images(*size)), expected):
            torch.testing.assert_close(out, same, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('name', ['TokenAdapter', 'GridPool', 'Random', 'Expediting'])
def test_what_is_left_fills_whole_kernels(name):
    model = MixVisionTransformer(**dict(SMALL, sr_ratios=[8, 4, 3, 1], token_reduction=dict(type=name, stage=3)))
    for grid in ((16, 20), (9, 11), (3, 4), (30, 30)):
        # The first kernel is all that the smallest grid has.
        for rows, columns in model.token_reducer.grid_schedule(grid, 3):
            assert (rows, columns) == grid or rows % 3 in (0, grid[0] % 3) and columns % 3 in (0, grid[1] % 3)
            assert rows >= 3 and columns >= 3


@pytest.mark.parametrize('sr_ratios', [[8, 4, 2, 1], [1, 1, 1, 1]], ids=str)
def test_lora_merges(sr_ratios):
    stock, _ = twins(sr_ratios=sr_ratios)
    model = apply_peft(copy.deepcopy(stock), dict(type='LoRA', rank=2, targets=['qkv', 'proj', 'fc1', 'fc2']))
    for low_rank in (module for each in model.peft.layers for module in each.values()):
        nn.init.normal_(low_rank.up.weight, std=0.3)
    stock.load_state_dict(model.peft.merged_state_dict(model), strict=True)
    with torch.no_grad():
        for out, same in zip(model.eval()(images(64, 96)), stock(images(64, 96))):
            torch.testing.assert_close(out, same, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_heads=[1, 2, 4]), r'num_heads=\(1, 2, 4\) has 3 values for 4 stages: give one for each'),
        (dict(out_indices=(0, 4)), 'out_indices goes to 4, but there are 4 stages: choose up to 3'),
        (dict(embed_dims=0), 'embed_dims=0 must be a whole number from 1'),
        (dict(sr_ratios=[8, 4, 2, 0]), 'sr_ratios'),
        (dict(token_reduction=dict(type='GridPool', stage=5)), r'token_reduction.stage=5 must be a whole number'),
        (dict(token_reduction=dict(type='ToMe')), "type='ToMe' cannot work in a backbone of stages"),
        (
            dict(token_reduction=dict(type='TokenAdapter', per_layer=(1, 2))),
            r'per_layer=\(1, 2\) does not fit stage 3, which needs a grid in multiples of 2',
        ),
        (dict(token_reduction=dict(type='TokenAdapter', score='attn')), "score='attn' needs attention from all tokens"),
    ],
    ids=str,
)
def test_mistakes_are_told_when_it_is_built(kwargs, message):
    with pytest.raises(UserError, match=message):
        MixVisionTransformer(**{**SMALL, **kwargs})


def test_an_image_that_fills_no_kernel_is_refused():
    model = MixVisionTransformer(**SMALL)
    message = 'An image of 20x40 pixels has 5x10 tokens in stage 1, fewer than its sr_ratio 8 needs: give larger images'
    with pytest.raises(UserError, match=message):
        model(images(20, 40))
