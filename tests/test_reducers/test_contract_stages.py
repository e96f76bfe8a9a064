"""The promises of DESIGN section 3 in every backbone of stages, for every method that works there."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.analysis.layers import analyze_layers
from mmtr.models.backbones import PCPVT, SVT, MixVisionTransformer, PyramidVisionTransformer, SwinTransformer
from mmtr.models.backbones.swin.stages import SwinStages
from mmtr.registry import MODELS, TOKEN_REDUCERS
from mmtr.visualization import token_maps

from . import test_contract as contract
from . import test_contract_calls as calls
from .test_contract import device, images  # noqa: F401  a fixture

MORE = dict(
    CubistMerge=[
        dict(ratio=(0.2, 0.5), layers=(0, 2), metric='euclidean'),
        dict(ratio=0.5, merge='average', restore='copy', stage=1, layers=(1, 2)),
    ],
    Expediting=[dict(layer=0, grid=(2, 5), window=9), dict(grid=4, layer=3, restore='copy', k=3)],
    GridPool=[dict(ratio=(0.2, 0.6), layers=(0, 2)), dict(restore='copy', stage=1, layers=(1, 2))],
    Random=[dict(ratio=0.9, layer=0, restore='copy'), dict(ratio=0.3, stage=1, restore='last')],
    TokenAdapter=[
        dict(per_layer=(1, 0), mode='threshold', layers=(0, 4)),
        dict(score='max', restore='copy', stage=1),
        dict(unique=0.2, reference='representative', layers=(1, 3)),
        dict(merge='bilinear', score='random'),
    ],
)
CASES = [
    dict(type=name, **settings)
    for name, method in sorted(TOKEN_REDUCERS.module_dict.items())
    if method.leaves_grid
    for settings in [{}, *MORE.get(name, [])]
]
every_reducer = pytest.mark.parametrize('cfg', CASES, ids=str)
TWO = dict(strides=(4, 2), out_indices=(0, 1))
OVERLAPPING = dict(TWO, num_heads=(2, 4), patch_sizes=(7, 3), sr_ratios=(2, 1))
TWINS = dict(
    TWO,
    qkv_bias=True,
    embed_dims=(16, 32),
    depths=(2, 4),
    num_heads=(2, 4),
    patch_sizes=(4, 2),
    sr_ratios=(2, 1),
    mlp_ratios=(4, 4),
)
SMALL = {
    SwinTransformer: dict(TWO, embed_dims=16, depths=(2, 4), num_heads=(2, 4), window_size=6),
    MixVisionTransformer: dict(OVERLAPPING, embed_dims=8, num_stages=2, num_layers=(2, 4)),
    PyramidVisionTransformer: dict(
        OVERLAPPING, embed_dims=8, num_stages=2, num_layers=(2, 4), paddings=(3, 1), mlp_ratios=(4, 4)
    ),
    PCPVT: TWINS,
    SVT: dict(TWINS, windiow_sizes=(6, 6)),
}
if find_spec('mmpretrain'):  # as in test_contract.py
    SMALL[MODELS.get('SwinTransformerV2')] = dict(
        arch=dict(embed_dims=16, depths=(2, 4), num_heads=(2, 4), extra_norm_every_n_blocks=2),
        out_indices=(0, 1),
        window_size=6,
        pretrained_window_sizes=(4, 0),
        pad_small_map=True,
    )


def host_of(kind):
    """Function that builds a small model with 16 and 32 channels, on grids of 20x28 and 10x14 for the usual images.

    A Swin has windows of all sizes at their border. Twins reduce nothing before block 0: there a method begins at 1.
    """

    def build(cfg, with_cp=False, **kwargs):
        torch.manual_seed(0)
        if cfg and kind in (PCPVT, SVT):
            begins = dict(layer=lambda i: max(i, 1), layers=lambda span: (max(span[0], 1), span[1]))
            cfg = {key: begins.get(key, lambda value: value)(value) for key, value in cfg.items()}
        model = contract.filled(kind(**SMALL[kind], **kwargs, token_reduction=cfg))
        for block in model.all_layers:
            block.with_cp = with_cp
        return model

    build.kind, build.__name__ = kind, kind.__name__.lower()
    return build


def in_windows(host):
    """Whether reducers run within windows."""
    return issubclass(host.kind, SwinStages)


def last_of(block):
    """The last layers of attention and of the FFN."""
    attn = getattr(block.attn, 'w_msa', block.attn)
    out = attn.proj if hasattr(attn, 'proj') else attn.attn.out_proj
    return out, [layer for layer in block.ffn.layers if hasattr(layer, 'weight')][-1]


HOSTS = [host_of(kind) for kind in SMALL]
every_host = pytest.mark.parametrize('host', HOSTS, ids=lambda host: host.__name__)


@every_host
@every_reducer
@pytest.mark.parametrize(
    'check',
    [
        contract.test_an_image_does_not_depend_on_its_batch,
        calls.test_no_state_is_left_on_the_module,
        calls.test_two_threads_share_a_model,
    ],
    ids=lambda f: f.__name__,
)
def test_as_a_vit(cfg, host, check):
    check(cfg, host)


@every_host
@pytest.mark.slow
@pytest.mark.parametrize('cfg', [cfg for cfg in CASES if len(cfg) == 1], ids=str)
def test_compiles_without_a_graph_break(cfg, host):
    calls.test_compiles_without_a_graph_break(cfg, host)


@every_host
@every_reducer
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_dtype_in_is_dtype_out(cfg, host, dtype):
    contract.test_dtype_in_is_dtype_out(cfg, host, dtype)


@every_host
@every_reducer
@pytest.mark.parametrize('height, width', [(64, 64), (80, 112), (57, 130), (5, 9)])
def test_heads_receive_the_full_grid(cfg, host, height, width):
    model = host(cfg)
    if isinstance(cfg.get('grid'), (int, tuple)) and (height, width) == (5, 9) and not in_windows(host):
        with pytest.raises(UserError, match=r'is more than the \dx\d patches of this image'):
            model(images(2, height, width))
        return
    with torch.no_grad():
        outs = model(images(2, height, width))
    grid = (-(-height // 4), -(-width // 4))
    assert [tuple(out.shape) for out in outs] == [(2, 16, *grid), (2, 32, *(-(-n // 2) for n in grid))]
    assert all(out.isfinite().all() for out in outs)


@every_host
@every_reducer
def test_positions_are_in_raster_order(cfg, host):
    # With attention and FFN silenced, a token is its patch: what is restored must resemble its own place.
    model = host(cfg)
    for linear in (linear for block in model.all_layers for linear in last_of(block)):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    plain = copy.deepcopy(model)
    plain.set_token_reduction(None)
    stage = model.token_reducer.backbone.stage
    ramp = torch.linspace(-1, 1, 112).expand(80, 112) + torch.linspace(-2, 2, 80).unsqueeze(1)
    # Norms would make all grey patches alike.
    smooth = torch.stack([ramp, ramp.flip(1), ramp.cos()]).unsqueeze(0)
    with torch.no_grad():
        out, own = (m(smooth.to(contract.DEVICE))[stage - 1].flatten(2)[0].cpu() for m in (model, plain))
    distance = torch.cdist(out.T, own.T)
    order = torch.randperm(len(distance), generator=torch.Generator().manual_seed(0))
    # Where no window holds them together, a token that is left may stand for a twelfth of the image.
    share = 0.6 if in_windows(host) else 0.9
    assert distance.diagonal().mean() < share * distance[torch.arange(len(order)), order].mean()


@every_host
@every_reducer
def test_nothing_to_reduce_is_the_plain_model(cfg, host):
    nothing = dict(ratio=0.0) if cfg['type'] == 'Random' else TOKEN_REDUCERS.module_dict[cfg['type']].nothing
    model = host({**{k: v for k, v in cfg.items() if k != 'per_layer'}, **nothing})
    (stock,) = (
        kind for kind in host.kind.__bases__ if kind.__module__.startswith('mm') and 'mmtr' not in kind.__module__
    )
    stock = stock(**SMALL[host.kind])
    loaded = stock.load_state_dict(model.state_dict(), strict=False)
    # Swin V2 computes its buffers itself, and leaves them out.
    assert not loaded.unexpected_keys and set(loaded.missing_keys) <= dict(stock.named_buffers()).keys()
    stock.to(contract.DEVICE).eval()  # mmseg's returns None
    with torch.no_grad():
        for out, expected in zip(model(images()), stock(images())):
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@every_host
@every_reducer
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_no_nan_on_a_constant_image(cfg, host, value):
    blank = host(cfg)
    for norm in (module for module in blank.modules() if isinstance(module, torch.nn.LayerNorm)):
        torch.nn.init.zeros_(norm.bias)
    with torch.no_grad():
        for model in (host(cfg), blank):
            assert all(out.isfinite().all() for out in model(torch.full((1, 3, 64, 72), value, device=contract.DEVICE)))


@every_host
@every_reducer
def test_token_schedule_is_what_the_layers_see(cfg, host):
    model = host(cfg)
    seen = []
    for block in model.all_layers:
        block.ffn.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad():
        model(images(1))
    assert seen == model.token_schedule((80, 112))
    first = 0 if model.token_reducer.backbone.stage == 1 else 2
    whole = [560] * 2 + [140] * 4
    assert min(seen[i] / whole[i] for i in range(first, 6)) < 1


@every_host
@every_reducer
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_flow(cfg, host, with_cp):
    grads = []
    for checkpointed in (False, with_cp):
        model = host(cfg, with_cp=checkpointed).train()
        torch.manual_seed(2)
        sum(out.square().mean() for out in model(images())).backward()
        grads.append([p.grad for p in model.parameters()])
        assert all(grad is not None and grad.isfinite().all() for grad in grads[-1])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'host',
    [
        pytest.param(
            host, marks=[pytest.mark.slow] * (host.kind in (SwinTransformer, PyramidVisionTransformer, PCPVT, SVT))
        )
        for host in HOSTS
    ],
    ids=lambda host: host.__name__,
)
@pytest.mark.parametrize('cfg', contract.defaults_first(CASES), ids=str)
def test_tools_see_the_reduced_stage(cfg, host):
    model = host(cfg)
    reducer, stage = model.token_reducer, model.token_reducer.backbone.stage
    blocks = slice(2) if stage == 1 else slice(2, 6)
    schedule, whole = model.token_schedule((80, 112))[blocks], 560 if stage == 1 else 140
    maps = token_maps(model, images(2))
    assert sorted(maps) == [i for i, tokens in enumerate(schedule) if tokens < whole]
    for i, of_images in maps.items():
        for token_map in of_images:
            height, width = token_map.group.shape
            assert (height, width) == ((20, 28) if stage == 1 else (10, 14))
            place, stand_in = (
                np.stack(np.unravel_index(p, (height, width))) // 6
                for p in (np.arange(height * width), token_map.stands_for.flatten())
            )
            assert not in_windows(host) or (place == stand_in).all(), 'within windows'
            if cfg['type'] in ('Random', 'TokenAdapter'):
                assert (token_map.group > 0).sum() == schedule[i]
    found = analyze_layers(model, [images(1)], dict(own=reducer), repeats=1)['own']['layers']
    assert found['ffn_tokens'] == schedule
    assert all(n >= m for n, m in zip(found['attention_tokens'], schedule)), 'padding counts'
    counts = [count_flops(m, images(1)) for m in (model, host(None))]
    # Layers compute less; in models as small as these, matching over a whole grid may cost more than that saves.
    assert counts[0].by_operator['linear'] < counts[1].by_operator['linear'] and counts[0].unsupported == {}


@every_host
@pytest.mark.parametrize('name', sorted({cfg['type'] for cfg in CASES}))
def test_whatever_a_search_draws_works(name, host):
    optuna = pytest.importorskip('optuna')
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    model = host(None)
    shape, space = model.token_reducer.backbone, TOKEN_REDUCERS.module_dict[name].search_space
    for _ in range(30):
        model.set_token_reduction(dict(type=name, **space(study.ask(), shape)))
        with torch.no_grad():
            assert model(images(1, 40, 60))[1].isfinite().all()
