"""The nine promises of DESIGN section 3, for every registered reducer: registering one is enough to be tested."""

import copy
import functools
import inspect
from importlib.util import find_spec

import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.models.backbones import VisionTransformer as Stock

from mmtr import UserError
from mmtr.models import backbones
from mmtr.models.backbones import EVA02, DINOv2, VisionTransformer, ViTDet
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.reducers.auxiliary import auxiliary_outputs
from mmtr.registry import TOKEN_REDUCERS

from . import hosts

TOKEN_REDUCERS.import_from_location()
#: More settings than the defaults, for methods with several ways to work.
MORE = dict(
    ALGM=[
        dict(threshold=0.2),
        dict(threshold=0.3, window=3, global_layer=None),
        dict(threshold=0.3, local_layer=None, global_layer=0),
        dict(variant='released', restore_at='before_norm', threshold=0.2, global_layer=3),
    ],
    Cropr=[
        dict(layers=(0, 2), fusion='none', r=[3, 0.2], task='multilabel', pre_norm=True, mlp_ratio=0),
        dict(layers=(1,), multiple_of=8, task='classification', num_heads=4, projections='qkv'),
        dict(r=7, deploy=True, region=3, restore='residual'),
    ],
    CubistMerge=[
        dict(ratio=(0.2, 0.5), layers=(0, 2), merge='average'),
        dict(metric='euclidean', restore='copy', multiple_of=2),
    ],
    DAR=[dict(target=0.3, temperature=1.0, threshold=0.7)],
    EViT=[dict(keep_rate=0.7, layers=(0, 2), fuse=False, restore='copy', multiple_of=2), dict(keep_rate=0.1)],
    Expediting=[
        dict(layer=0, grid=(3, 4), n_iters=1, window=3, temperature=1.0, k=1),
        dict(layer=3, grid=(0.3, 1.0), window=9, normalize='l1', recon_temperature=0.01, multiple_of=2),
    ],
    GridPool=[dict(ratio=(0.2, 0.6), layers=(0, 2)), dict(restore='copy', multiple_of=2), dict(restore='learned')],
    MPM=[dict(layers=(0, 1, 3), restore='copy')],
    Random=[
        dict(every=3, layer=0, restore='copy'),
        dict(ratio=0.9, seed=5, restore='residual'),
        dict(r=0.3, fusion='llf'),
        dict(layers=(0, 2), multiple_of=4, restore='copy'),
    ],
    ToMe=[
        dict(r=0.5, layers=(1, 3), proportional_attention=True),
        dict(mode='progressive'),
        dict(mode='progressive', r=(0.25, -1), restore='residual'),
        dict(mode='progressive', r=[0, 9, 3, 1], matching='energy'),
        dict(mode='progressive', r=0.3, multiple_of=4, restore='learned'),
    ],
    TokenAdapter=[
        dict(per_layer=(1, 0), mode='threshold'),
        dict(unique=0.2, reference='representative', layers=(1, 3), multiple_of=2),
        dict(score='attn', metric='euclidean', mode='threshold', tau=-1.0),
        dict(score='random', merge='bilinear'),
        dict(score='alternating', merge='keep', layers=(0, 4), restore='residual'),
    ],
)
CASES = [
    dict(type=name, **settings) for name in sorted(TOKEN_REDUCERS.module_dict) for settings in [{}, *MORE.get(name, [])]
]
every_reducer = pytest.mark.parametrize('cfg', CASES, ids=str)


def defaults_first(cases):
    """Parameters of a test that takes long: settings beside the type are left to the long run."""
    return [pytest.param(cfg, marks=[pytest.mark.slow] * (len(cfg) > 1)) for cfg in cases]


@pytest.fixture(autouse=True, params=['cpu', *['cuda'] * torch.cuda.is_available()])
def device(request, monkeypatch):
    """Where ``filled`` and ``images`` put models and images; tensors that a reducer makes must follow by themselves."""
    monkeypatch.setitem(globals(), 'DEVICE', request.param)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    return request.param


def small(host, cfg, patch_size, **kwargs):
    torch.manual_seed(0)
    shape = dict(img_size=(64, 96), embed_dims=32, num_layers=4, num_heads=4)
    return filled(host(**shape, patch_size=patch_size, out_indices=(1, 3), token_reduction=cfg, **kwargs))


def vit(cfg, patch_size=16, with_cls_token=True, **kwargs):
    return small(VisionTransformer, cfg, patch_size, with_cls_token=with_cls_token, final_norm=True, **kwargs)


def host_without_own_settings(host):
    """Function that builds a small model of this host."""
    taken = inspect.signature(host).parameters

    def build(cfg, patch_size=16, with_cls_token=True, with_cp=False, **kwargs):
        if 'with_cls_token' not in taken and not with_cls_token:
            pytest.skip('it always has a class token')
        if not host.merges_apart:
            hosts.knowing_positions(cfg)
        own = dict(with_cls_token=with_cls_token, init_values=1.0, layer_scale_init_value=1.0)
        model = small(host, cfg, patch_size, **{key: own[key] for key in own if key in taken}, **kwargs)
        for layer in model.layers:
            layer.with_cp = with_cp
        return model

    build.__name__ = host.__name__.lower()
    return build


eva02, vitdet = host_without_own_settings(EVA02), host_without_own_settings(hosts.vitdet)


def dinov2(cfg, patch_size=16, with_cls_token=True, **kwargs):
    """With registers, where there is a class token."""
    registers = dict(num_registers=3 * with_cls_token, layer_scale_init_value=1.0)
    return small(DINOv2, cfg, patch_size, with_cls_token=with_cls_token, **registers, **kwargs)


def with_weights(host):
    """Function that builds a small model of a host of mmpretrain, and fills it."""

    @functools.wraps(host)
    def build(cfg, patch_size=16, with_cls_token=True, with_cp=False, **kwargs):
        model = host(cfg, patch_size, with_cls_token, **kwargs)
        for layer in model.layers:
            layer.with_cp = with_cp
        return filled(model)

    return build


#: Plain ViTs that need no settings of their own are among the backbones by their name in ``__all__``.
OTHERS = [
    host_without_own_settings(host)
    for host in (getattr(backbones, name) for name in backbones.__all__)
    if issubclass(host, ReducibleBackbone) and host not in (VisionTransformer, EVA02, DINOv2, ViTDet)
]
#: mmpretrain is no part of the environment that tests run in; tests/test_mmpretrain.py runs these in one that has it.
ON_MMPRETRAIN = [with_weights(host) for host in hosts.ON_MMPRETRAIN] if find_spec('mmpretrain') else []
BACKBONES = (vit, eva02, dinov2, vitdet, *OTHERS, *ON_MMPRETRAIN)
DEVICE = 'cpu'


@pytest.fixture(params=BACKBONES, ids=lambda build: build.__name__)
def backbone(request):
    """Function from a reducer's config to a small backbone in eval mode."""
    return request.param


def filled(model):
    model.init_weights()
    # Fresh weights are so small that layers hardly change a token: a mistake would not show.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().to(DEVICE)


def branch_ends(layer):
    """The linear layers that attention and FFN end with."""
    return [layer.linears()[name][0] for name in ('proj', 'fc2')]


def images(batch=2, height=80, width=112, seed=1):
    return (torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(DEVICE)


def train_step(model, x):
    """Feature maps of a forward pass in training, and the sum of the auxiliary losses."""
    sample = BaseDataElement(
        gt_sem_seg=PixelData(data=torch.arange(x[0, :1].numel()).view(1, *x.shape[2:]) % 150),
        gt_instances=InstanceData(labels=torch.tensor([3, 140])),
        gt_label=torch.tensor([7]),
    ).to(x.device)
    with auxiliary_outputs() as outputs:
        outs = model(x)
    return outs, sum(model.token_reducer.losses(outputs.get(model.token_reducer, {}), [sample] * len(x)).values())


@every_reducer
@pytest.mark.parametrize(
    'height, width, patch_size, with_cls_token',
    [(64, 64, 16, True), (80, 112, 16, True), (57, 130, 16, False), (84, 70, 14, True), (48, 48, 8, False)],
)
def test_heads_receive_the_full_grid(cfg, backbone, height, width, patch_size, with_cls_token):
    if TOKEN_REDUCERS.module_dict[cfg['type']].needs_class_token and not with_cls_token:
        with pytest.raises(UserError, match='reads the class token, and this backbone has none'):
            backbone(cfg, patch_size, with_cls_token)
        return
    model = backbone(cfg, patch_size, with_cls_token)
    with torch.no_grad():
        outs = model(images(2, height, width))
    grid = (-(-height // patch_size), -(-width // patch_size))
    assert [tuple(out.shape) for out in outs] == [(2, 32, *grid)] * 2
    assert all(out.isfinite().all() for out in outs)


@every_reducer
def test_positions_are_in_raster_order(cfg, backbone):
    # With attention and FFN silenced, a token is its patch: what is restored must resemble its own place.
    model = backbone(cfg)
    for layer in model.layers:
        for linear in branch_ends(layer):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    plain = copy.deepcopy(model)
    plain.set_token_reduction(None)
    smooth = torch.linspace(-1, 1, 112).expand(80, 112) + torch.linspace(-2, 2, 80).unsqueeze(1)
    with torch.no_grad():
        out, own = (m(smooth.expand(1, 3, 80, 112).to(DEVICE))[1].flatten(2)[0].cpu() for m in (model, plain))
    distance = torch.cdist(out.T, own.T)
    at_home = distance.diagonal().mean()
    shuffled = distance[torch.arange(35), torch.randperm(35, generator=torch.Generator().manual_seed(0))].mean()
    assert at_home < 0.6 * shuffled


@every_reducer
def test_prefix_tokens_are_never_reduced(cfg, backbone):
    seen = []
    model = backbone(cfg)
    for layer in model.layers:
        layer.register_forward_hook(
            lambda module, args, kwargs, out: seen.append(kwargs['step'].tokens), with_kwargs=True
        )
    with torch.no_grad():
        model(images())
    schedule = model.token_reducer.token_schedule((5, 7), 4)
    prefix = dict(dinov2=4, dinov3=5, vitdet=0, vitsam=0).get(backbone.__name__, 1)
    assert {tokens.num_prefix for tokens in seen} == {prefix}
    if model.token_reducer.fixed_count:
        # A layer's output may be restored already, or reduced or restored in the next layer.
        assert all(tokens.patches.shape[1] >= min(counts) for tokens, counts in zip(seen, zip(schedule, schedule[1:])))


@every_reducer
def test_an_image_does_not_depend_on_its_batch(cfg, backbone):
    model = backbone(cfg)
    batch = images(4)
    with torch.no_grad():
        together = model(batch)
        for i in range(4):
            for out, alone in zip(together, model(batch[i : i + 1])):
                torch.testing.assert_close(out[i : i + 1], alone, atol=2e-5, rtol=1e-4)


@every_reducer
def test_an_empty_batch_gives_empty_maps(cfg, backbone):
    with torch.no_grad():
        assert [tuple(out.shape) for out in backbone(cfg)(images(0))] == [(0, 32, 5, 7)] * 2


@every_reducer
def test_nothing_to_reduce_is_the_plain_model(cfg, backbone):
    reducing = TOKEN_REDUCERS.module_dict[cfg['type']]
    settings = {k: v for k, v in cfg.items() if k != 'per_layer'}
    model = backbone({**settings, **reducing.nothing})
    stock = (
        backbone(None)
        if backbone is not vit
        else Stock(img_size=(64, 96), embed_dims=32, num_layers=4, num_heads=4, final_norm=True, out_indices=(1, 3))
    )
    own = {id(p) for p in model.token_reducer.parameters()}
    state = {k: v for k, v in model.state_dict(keep_vars=True).items() if id(v) not in own}
    stock.load_state_dict(state, strict=True)
    stock.to(DEVICE).eval()  # mmseg's returns None
    with torch.no_grad():
        for out, expected in zip(model(images()), stock(images())):
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@every_reducer
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_dtype_in_is_dtype_out(cfg, backbone, dtype):
    model = backbone(cfg)
    plain = backbone(None)
    with torch.no_grad(), torch.autocast(DEVICE, dtype):
        assert [o.dtype for o in model(images())] == [o.dtype for o in plain(images())]
    with torch.no_grad():
        outs = model.to(dtype)(images().to(dtype))
    assert all(out.dtype == dtype and out.isfinite().all() for out in outs)


@every_reducer
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_no_nan_on_a_constant_image(cfg, backbone, value):
    with torch.no_grad():
        assert all(out.isfinite().all() for out in backbone(cfg)(torch.full((1, 3, 64, 64), value, device=DEVICE)))
    blank = backbone(cfg)
    for table in (value for name, value in blank.named_parameters() if name == 'pos_embed'):  # if it has one
        torch.nn.init.zeros_(table)
    with torch.no_grad():
        assert all(out.isfinite().all() for out in blank(torch.zeros(1, 3, 64, 64, device=DEVICE)))
