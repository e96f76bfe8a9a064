"""The promises of DESIGN section 3 on calls: threads, graphs, counts of tokens, gradients and searches."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.registry import TOKEN_REDUCERS

from . import test_contract as contract
from .test_contract import BACKBONES, CASES, branch_ends, every_reducer, images, train_step, vit

backbone, device = contract.backbone, contract.device  # fixtures


@every_reducer
def test_no_state_is_left_on_the_module(cfg, backbone):
    model = backbone(cfg)
    before = {name: dict(vars(module)) for name, module in model.token_reducer.named_modules()}
    with torch.no_grad():
        model(images())
    after = {name: dict(vars(module)) for name, module in model.token_reducer.named_modules()}
    assert str(before) == str(after)


@every_reducer
def test_two_threads_share_a_model(cfg, backbone):
    model = backbone(cfg)
    inputs = [images(1, seed=i) for i in range(4)] + [images(1, 64, 144, seed=i) for i in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]

        def run(x):
            with torch.no_grad():
                return model(x)

        with ThreadPoolExecutor(2) as pool:
            for outs, own in zip(pool.map(run, inputs), expected):
                for out, alone in zip(outs, own):
                    torch.testing.assert_close(out, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    'cfg',
    [
        pytest.param(cfg, marks=[pytest.mark.slow] * (cfg not in (dict(type='TokenAdapter'), dict(type='ToMe'))))
        for cfg in CASES
    ],
    ids=str,
)
def test_compiles_without_a_graph_break(cfg, backbone=vit):
    model = backbone(cfg)
    if not model.token_reducer.fixed_count:
        pytest.skip('the number of tokens depends on the image')
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for out, eager in zip(compiled(images()), model(images())):
            torch.testing.assert_close(out, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('cfg', [cfg for cfg in CASES if len(cfg) == 1], ids=str)
@pytest.mark.parametrize('backbone', BACKBONES[1:], ids=lambda build: build.__name__)
def test_every_host_compiles(cfg, backbone):
    # Other settings than the defaults of a method differ in no host from what they do in a ViT.
    test_compiles_without_a_graph_break(cfg, backbone)


@every_reducer
def test_token_schedule_is_what_the_layers_see(cfg, backbone):
    model = backbone(cfg)
    seen, through_ffn = [], []
    for layer in model.layers:
        # What attention computes on: some methods reduce after the norm.
        attn, ffn = branch_ends(layer)
        attn.register_forward_hook(lambda module, args, out: seen.append(out.shape[1] - model.num_prefix))
        ffn.register_forward_hook(
            lambda module, args, out: through_ffn.append(out.shape[:-1].numel() - model.num_prefix)
        )
    half_flat = images(1)
    half_flat[..., :56] = 1
    with torch.no_grad():
        model(half_flat)
    schedule = model.token_reducer.token_schedule((5, 7), 4)
    if model.token_reducer.fixed_count:
        assert seen == schedule
    assert all(count >= fewest for count, fewest in zip(seen, schedule)) and min(seen + through_ffn) < 35


@every_reducer
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_flow(cfg, backbone, with_cp):
    model = backbone(cfg, with_cp=with_cp).train()
    x = images().requires_grad_()
    outs, loss = train_step(model, x)
    (sum(out.square().mean() for out in outs) + loss).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    # A frozen parameter stays without a gradient.
    frozen = backbone(cfg, with_cp=with_cp).train()
    for parameter in frozen.layers.parameters():
        parameter.requires_grad = False
    outs, loss = train_step(frozen, images())
    (sum(out.square().mean() for out in outs) + loss).backward()
    assert all(p.grad is None for p in frozen.layers.parameters())
    assert all(p.grad is not None for p in frozen.patch_embed.parameters())


@every_reducer
def test_checkpointing_changes_no_gradient(cfg, backbone):
    grads = []
    for with_cp in (False, True):
        model = backbone(cfg, with_cp=with_cp).train()
        outs, loss = train_step(model, images())
        (outs[1].square().mean() + loss).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    'name', sorted(name for name, method in TOKEN_REDUCERS.module_dict.items() if not method.trained)
)
@pytest.mark.parametrize('depth', [2, 4, 24])
def test_whatever_a_search_draws_works(name, depth):
    optuna = pytest.importorskip('optuna')
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = TOKEN_REDUCERS.module_dict[name].search_space
    drawn = [space(study.ask(), BackboneInfo(depth, 32, 1)) for _ in range(60)]
    for settings in drawn:
        reducer = build_token_reducer(dict(type=name, **settings), BackboneInfo(depth, 32, 1))
        assert len(reducer.token_schedule((23, 30), depth)) == depth
    if depth == 4:
        for settings in drawn[:4]:
            with torch.no_grad():
                assert vit(dict(type=name, **settings))(images())[1].isfinite().all()
