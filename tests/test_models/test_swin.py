import copy

import pytest
import torch
from mmseg.models.backbones import SwinTransformer as Stock
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmtr import UserError, apply_token_reduction
from mmtr.models.backbones import SwinTransformer

SMALL = dict(
    embed_dims=16, depths=(2, 2, 3), num_heads=(2, 4, 8), strides=(4, 2, 2), out_indices=(0, 1, 2), window_size=4
)
REDUCTION = dict(type='TokenAdapter', stage=3, ratio=0.3, layers=(1, 3))


@pytest.fixture
def mmdet_stock():
    """mmdet's own class."""
    from mmdet.models.backbones import SwinTransformer as OfDetection

    return OfDetection


def filled(model):
    """Weights under which a mistake would show: fresh position tables are zeros."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5 if 'table' in name else 0.15)
        elif 'norm' not in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def twins(stock=Stock, **kwargs):
    """A stock backbone with weights that matter, and ours with the same."""
    theirs, ours = filled(stock(**{**SMALL, **kwargs})), SwinTransformer(**{**SMALL, **kwargs})
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.eval()  # which returns None
    return theirs, ours.eval()


def assert_alike(outs, expected, **tolerance):
    assert len(outs) == len(expected)
    for out, same in zip(outs, expected):
        assert out.is_contiguous() == same.is_contiguous()
        torch.testing.assert_close(out, same, **(tolerance or dict(atol=1e-5, rtol=1e-4)))


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(window_size=7),
        dict(window_size=3, qkv_bias=False, qk_scale=0.3),
        dict(window_size=1),
        dict(patch_norm=False, out_indices=(1,)),
        dict(mlp_ratio=2.5),
        dict(attn_backend='math'),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(128, 128), (96, 160), (57, 131), (9, 30), (3, 3)], ids=str)
def test_outputs_are_the_stock_ones(kwargs, size):
    backend = kwargs.get('attn_backend', 'auto')
    stock, ours = twins(**{key: value for key, value in kwargs.items() if key != 'attn_backend'})
    ours = apply_token_reduction(stock, None, backend) if backend != 'auto' else ours
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_alike(ours(x), stock(x))


def test_position_embedding_is_added_as_by_stock():
    stock, ours = twins(use_abs_pos_embed=True, pretrain_img_size=64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_alike(ours(x), stock(x))


def test_mmdets_is_the_same_model(mmdet_stock):
    stock, ours = twins(mmdet_stock, convert_weights=True)
    twin = apply_token_reduction(stock, None)
    x = torch.randn(2, 3, 57, 131)
    assert isinstance(twin, SwinTransformer) and twin.state_dict().keys() == stock.state_dict().keys()
    # Nothing that mmdet keeps on its modules is missing from, or other than, mmseg's.
    for of_mmdet, of_mmseg in zip(stock.modules(), Stock(**SMALL).modules()):
        assert vars(of_mmdet).keys() - {'convert_weights'} == vars(of_mmseg).keys()
    with torch.no_grad():
        expected = stock(x)
        assert_alike(ours(x), expected)
        assert_alike(twin(x), expected)
        assert_alike(stock(x), expected, atol=0, rtol=0)


@pytest.mark.parametrize('with_cp', [False, True])
def test_training_draws_the_same_drop_path_and_gives_the_same_gradients(with_cp):
    stock, ours = twins(drop_path_rate=0.5)
    for module in ours.modules():
        if hasattr(module, 'with_cp'):
            module.with_cp = with_cp
    x = torch.randn(4, 3, 50, 70)
    grads = []
    for model in (stock, ours):
        model.train()
        torch.manual_seed(1)
        sum(out.square().mean() for out in model(x)).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3)
    assert all(grad is not None and grad.abs().sum() > 0 for name, grad in grads[0].items() if 'table' in name)


def test_frozen_stages_are_the_stock_ones():
    stock, ours = twins(frozen_stages=2)
    assert ours.train() is ours
    stock.train()
    assert [p.requires_grad for p in stock.parameters()] == [p.requires_grad for p in ours.parameters()]
    assert [m.training for m in stock.modules()] == [m.training for m in ours.modules()][:-1]  # and the reducer
    assert not ours.stages[1].training and ours.stages[2].training


@pytest.mark.parametrize('own', [False, True], ids=['stock', 'mmtr'])
def test_reduced_model_has_the_keys_of_the_stock_one(own):
    stock = Stock(**SMALL)
    weights = copy.deepcopy(stock.state_dict())
    model = SwinTransformer(**SMALL, token_reduction=REDUCTION) if own else apply_token_reduction(stock, REDUCTION)
    model.load_state_dict(weights, strict=True)
    assert model.state_dict().keys() == weights.keys()


def test_reduced_by_key_and_by_function_is_one_model():
    stock, plain = twins()
    by_key = SwinTransformer(**SMALL, token_reduction=REDUCTION).eval()
    by_key.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(2, 3, 100, 70)
    with torch.no_grad():
        expected = by_key(x)
        reduced = apply_token_reduction(stock, REDUCTION)
        assert reduced.patch_embed.projection.weight is stock.patch_embed.projection.weight
        assert_alike(reduced(x), expected)
        # Stages before the reduced one are whole.
        assert_alike(expected[:2], plain(x)[:2])
        assert not torch.allclose(expected[2], plain(x)[2], atol=1e-3)
        assert_alike(apply_token_reduction(reduced, None)(x), plain(x))


@pytest.mark.parametrize('stage', [1, 2, 3])
@pytest.mark.parametrize('size', [(64, 64), (57, 131), (9, 30)], ids=str)
def test_every_stage_can_be_reduced_at_any_size(stage, size):
    _, model = twins()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        plain = model(x)
        model.set_token_reduction(dict(type='GridPool', stage=stage, layers=(1, 2), ratio=0.5))
        outs = model(x)
    assert [out.shape for out in outs] == [out.shape for out in plain]
    assert_alike(outs[: stage - 1], plain[: stage - 1])
    if size != (9, 30):
        assert all(not torch.allclose(out, same, atol=1e-4) for out, same in zip(outs[stage - 1 :], plain[stage - 1 :]))


@pytest.mark.parametrize('window', [4, 7])
@pytest.mark.parametrize('wrapped', [False, True])
def test_stock_weights_load_as_pretrained(tmp_path, window, wrapped):
    stock = filled(Stock(**SMALL))
    state = {'norm.weight': torch.ones(64), 'head.bias': torch.ones(10), **stock.state_dict()}
    if wrapped:
        state = {'decode_head.weight': torch.ones(3), **{f'backbone.{key}': value for key, value in state.items()}}
    torch.save(dict(state_dict=state), tmp_path / 'swin.pth')
    init = dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    ours = SwinTransformer(**{**SMALL, 'window_size': window, 'out_indices': (1, 2)}, **init)
    ours.init_weights()
    for name, value in ours.state_dict().items():
        if window == 4 or not ('table' in name or 'index' in name):
            torch.testing.assert_close(value, stock.state_dict()[name])
    if window != 4:
        # What mmseg computes itself for another window.
        stock.load_state_dict(
            {key: value for key, value in ours.state_dict().items() if 'relative' not in key}, strict=False
        )
        theirs = Stock(
            **{**SMALL, 'window_size': window, 'out_indices': (1, 2)},
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'tables.pth')),
        )
        torch.save(
            {key: value for key, value in stock.state_dict().items() if 'index' not in key}, tmp_path / 'tables.pth'
        )
        theirs.init_weights()
        tables = [name for name in ours.state_dict() if 'table' in name]
        for name in tables:
            torch.testing.assert_close(ours.state_dict()[name], theirs.state_dict()[name])
        assert len(tables) == 7


def test_weights_of_another_swin_are_refused(tmp_path):
    state = Stock(**{**SMALL, 'embed_dims': 32}).state_dict()
    del state['stages.1.blocks.0.norm1.weight']
    torch.save(state, tmp_path / 'swin.pth')
    model = SwinTransformer(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    with pytest.raises(UserError, match=r'is not of this SwinTransformer: it differs in \d+ weights .*norm1.weight'):
        model.init_weights()


def test_fresh_weights_are_drawn_as_by_stock():
    states = []
    for cls in (Stock, SwinTransformer):
        torch.manual_seed(0)
        model = cls(**SMALL)
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(stage=4), r'token_reduction.stage=4 must be a whole number from 1 to 3'),
        (dict(stage=0), r'stage=0 must be a whole number'),
        (dict(stage='3'), r"stage='3' must be a whole number"),
        (dict(stage=1, layers=(1, 3)), r'layers=\(1, 3\) must be a span of layers .* <= 2'),
        (dict(ratio=0.9), r'ratio=0.9 takes 4 of 4 rows of the 4x4 patch grid .* the largest ratio that fits is 0.75'),
        (dict(score='attn', layers=(1, 3)), r"score='attn' needs attention from all"),
        (dict(restore='none'), r"restore='none' cannot work in a backbone of stages"),
        (
            dict(type='ToMe'),
            r"type='ToMe' cannot work in a backbone of stages.* one of CubistMerge, Expediting, GridPool, Random, T",
        ),
        (dict(type='ALGM'), r"type='ALGM' cannot work"),
        (dict(type='EViT'), r"type='EViT' cannot work"),
        (dict(type='Cropr'), r"type='Cropr' cannot work"),
        (dict(type='Expediting', grid=5), r'grid=\(5, 5\) is more than the 4x4 patches of this window'),
        (dict(type='Expediting', layer=3), r'layer=3 must be a whole number from 0 to 2'),
        (dict(type='Random', r=0.2), r'type Random drops rows and columns once in a backbone of stages'),
        (dict(type='Random', every=2), r'type Random drops rows and columns once in a backbone of stages'),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_when_the_model_is_built(settings, said):
    with pytest.raises(UserError, match=said):
        SwinTransformer(**SMALL, token_reduction={'type': 'TokenAdapter', **settings})


def test_without_a_stage_it_is_the_one_with_most_blocks():
    model = SwinTransformer(**SMALL, token_reduction=dict(type='TokenAdapter'))
    assert model.token_reducer.backbone.stage == 3 and model.token_reducer.inner.layers == (1, 3)
    # 64x64 pixels: 16x16, 8x8 and 4x4 patches; 3 of 4 rows and columns stay.
    assert model.token_schedule((64, 64)) == [256, 256, 64, 64, 16, 9, 9]


def test_unknown_attention_is_refused_when_built():
    with pytest.raises(UserError, match="attn_backend='fast'"):
        SwinTransformer(**SMALL, attn_backend='fast')


@pytest.mark.slow
def test_published_flops_tell_the_span_of_the_paper():
    # Tab. 2 of Token Adapter, MaskDINO Swin-L: 936.86 G, with stage 1, 2, 3, 4 reduced:
    saved = [936.86 - gflops for gflops in (915.74, 916.11, 809.66, 916.38)]
    model = SwinTransformer(embed_dims=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12).eval()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    flash = torch.ops.aten._scaled_dot_product_flash_attention  # what torch 2.1 calls on a CPU too
    attention = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', flash)

    def gflops(reduction=None):
        model.set_token_reduction(reduction)
        with (
            fake,
            torch.no_grad(),
            FlopCounterMode(
                display=False, custom_mapping={attention: lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)}
            ) as counter,
        ):
            model(torch.empty(1, 3, 640, 960))  # where the whole MaskDINO counts as published
        return counter.get_total_flops() / 2e9

    plain = gflops()
    found = [
        plain - gflops(dict(type='TokenAdapter', stage=stage, layers=layers, ratio=1 / 3))
        for stage, layers in zip((1, 2, 3, 4), ((0, 2), (0, 2), (6, 18), (0, 2)))
    ]
    print(f'backbone {plain:.1f} GFLOPs; saved {[round(n, 1) for n in found]}')
    # Half of these blocks would save half.
    assert found == pytest.approx(saved, rel=0.07)
