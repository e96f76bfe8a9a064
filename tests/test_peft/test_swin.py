"""``peft`` of a Swin: its widths and numbers of layers, its windows and what it freezes."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.models.backbones import SwinTransformer as Stock

from mmtr import UserError, apply_token_reduction
from mmtr.models.backbones import SwinTransformer
from mmtr.peft.freezing import table

from ..test_reducers.test_contract import filled
from ..test_reducers.test_contract_stages import CASES, host_of, images
from ..test_reducers.test_contract_stages import SMALL as SMALL_OF
from .swin_settings import RATES, TINY, TUNED
from .test_branches import PEFTS, assert_a_copy_is_its_own, every_peft

SMALL, swin = SMALL_OF[SwinTransformer], host_of(SwinTransformer)
WIDTHS = [16] * 2 + [32] * 4


def stock_of(model, **settings):
    """mmseg's Swin with the weights of ``model`` that are not of its PEFT."""
    stock = Stock(**{**SMALL, **settings})
    stock.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith(('peft.', 'token_reducer.'))}
    )
    stock.eval()  # which returns None
    return stock


def by_hand(stock, x, branch):
    """The outputs of mmseg's Swin with ``branch(i, x, grid)`` beside the FFN of block ``i`` of all."""
    x, grid = stock.patch_embed(x)
    outs, i = [], 0
    for k, stage in enumerate(stock.stages):
        for block in stage.blocks:
            x = x + block.attn(block.norm1(x), grid)
            x = block.ffn(block.norm2(x), identity=x) + branch(i, x, grid)
            i += 1
        outs.append(getattr(stock, f'norm{k}')(x).transpose(1, 2).reshape(len(x), -1, *grid))
        if stage.downsample is not None:
            x, grid = stage.downsample(x, grid)
    return outs


@every_peft
def test_at_the_start_it_is_the_stock_model_and_has_its_keys(peft):
    model = swin(None, peft=peft)
    model.peft.init_weights()
    plain = swin(None)
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith('peft.')}, strict=True)
    with torch.no_grad():
        outs = model(images())
        torch.testing.assert_close(outs, plain(images()), atol=0, rtol=0)
        torch.testing.assert_close(outs, stock_of(model)(images()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    'peft, reduction',
    [
        *((peft, None) for peft in PEFTS),
        *((peft, dict(type='TokenAdapter', layers=(1, 3))) for peft in PEFTS if peft['type'] != 'DAR'),
    ],
    ids=str,
)
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(peft, reduction, with_cp):
    model = swin(reduction, peft=peft, with_cp=with_cp, **RATES).train()
    sum(out.square().mean() for out in model(images())).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(TUNED):
            assert parameter.requires_grad and parameter.grad.abs().sum() > 0, name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name


@every_peft
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_what_is_frozen_is_in_eval_mode_while_the_rest_trains(peft, frozen_stages):
    model = swin(
        None, peft={**peft, **({'dropout': 0.0} if 'dropout' in peft else {})}, frozen_stages=frozen_stages, **RATES
    )
    with torch.no_grad():
        expected = model(images())
        assert model.train() is model and model.training
        torch.testing.assert_close(model(images()), expected, atol=0, rtol=0)
    parts = dict(model.named_children())
    assert all(m.training for name in ('peft', 'token_reducer', 'norm1') for m in parts[name].modules())
    assert not any(m.training for name in ('patch_embed', 'drop_after_pos', 'stages') for m in parts[name].modules())
    # Stock freezes the norms of frozen stages too.
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith(TUNED[:1] + TUNED[1 + (frozen_stages > 0) :])
    }
    # The first batch of a fresh model is run without a call of train().
    assert not any(m.training for m in SwinTransformer(**SMALL, peft=peft).stages.modules())


@every_peft
@pytest.mark.parametrize('size', [(57, 130), (5, 9)], ids=str)
def test_an_image_is_as_it_is_alone(peft, size):
    model, x = swin(None, peft=peft), images(8, *size)
    with torch.no_grad():
        outs = model(x)
        for i in range(8):
            torch.testing.assert_close(tuple(out[i : i + 1] for out in outs), model(x[i : i + 1]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('kind', ['Adapter', 'DAR'])
@pytest.mark.parametrize('size', [(80, 112), (57, 130)], ids=str)
def test_every_block_has_the_branch_of_its_number(kind, size):
    model = swin(None, peft=dict(type=kind, bottleneck=5, scale=0.7))
    for name, value in model.peft.state_dict().items():
        if name.endswith('bias'):
            torch.nn.init.normal_(value, std=0.3)
    w = {name: value.float() for name, value in model.peft.state_dict().items()}
    assert [len(w[f'adapters.{i}.up.bias']) for i in range(6)] == WIDTHS and 'adapters.6.up.bias' not in w

    def branch(i, x, grid):
        def linear(x, name):
            return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

        out = linear(linear(x, f'adapters.{i}.down').clamp(min=0), f'adapters.{i}.up')
        if kind == 'DAR':
            name = f'compensators.{i}'
            grid_of_x = linear(x, f'{name}.down').transpose(1, 2).reshape(len(x), -1, *grid)
            mixed = (
                F.conv2d(
                    grid_of_x,
                    w[f'{name}.depthwise.weight'],
                    w[f'{name}.depthwise.bias'],
                    padding=1,
                    groups=grid_of_x.shape[1],
                )
                .flatten(2)
                .transpose(1, 2)
            )
            out = out + linear(F.gelu(linear(mixed, f'{name}.mix')), f'{name}.up')
        return 0.7 * out

    with torch.no_grad():
        outs, expected = model(images(2, *size)), by_hand(stock_of(model), images(2, *size), branch)
        plain = stock_of(model)(images(2, *size))
    torch.testing.assert_close(outs, tuple(expected), atol=2e-4, rtol=1e-3)
    assert not any(torch.allclose(out, without, atol=0.1) for out, without in zip(outs, plain))


@pytest.mark.parametrize(
    'targets, names',
    [
        ('qkv', ['qkv'] * 6),
        (['proj', '3.fc1'], ['proj'] * 3 + ['proj fc1'] + ['proj'] * 2),
        ('[15].(qkv|fc2)', ['', 'qkv fc2', '', '', '', 'qkv fc2']),
        ('.*', ['qkv proj fc1 fc2'] * 6),
    ],
    ids=str,
)
def test_lora_is_another_weight(targets, names):
    model = swin(None, peft=dict(type='LoRA', rank=3, alpha=6.0, targets=targets))
    assert [' '.join(each) for each in model.peft.layers] == names
    paths = dict(qkv='attn.w_msa.qkv', proj='attn.w_msa.proj', fc1='ffn.layers.0.0', fc2='ffn.layers.1')
    stock, merged = stock_of(model), swin(None)
    weights = dict(stock.named_parameters())
    merged.load_state_dict(model.peft.merged_state_dict(model), strict=True)
    x = images(2, 57, 130)
    with torch.no_grad():
        frozen = stock(x)
        for i, each in enumerate(names):
            for name in each.split():
                low_rank = model.peft.layers[i][name]
                stage, block = (0, i) if i < 2 else (1, i - 2)
                weights[f'stages.{stage}.blocks.{block}.{paths[name]}.weight'] += (
                    2 * low_rank.up.weight @ low_rank.down.weight
                )
        outs = model(x)
        torch.testing.assert_close(merged(x), outs, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(stock(x), outs, atol=1e-4, rtol=1e-3)
        assert not any(torch.allclose(out, without, atol=1e-2) for out, without in zip(outs, frozen))


@pytest.mark.parametrize('target', ['qkv', 'proj', 'fc1', 'fc2'])
def test_each_linear_layer_alone_changes_what_comes_after_it(target):
    model = swin(None, peft=dict(type='LoRA', targets=f'3.{target}'))
    with torch.no_grad():
        (first, second), (plain, other) = model(images()), stock_of(model)(images())
    torch.testing.assert_close(first, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(second, other, atol=1e-3)


@pytest.mark.parametrize('reducer', CASES, ids=str)
@pytest.mark.parametrize('peft', [dict(type='Adapter'), dict(type='LoRA', targets='.*')], ids=str)
def test_adapter_and_lora_see_the_tokens_that_a_reducer_leaves(reducer, peft):
    model, seen = swin(reducer, peft=peft), []
    for each in model.peft.adapters if peft['type'] == 'Adapter' else (e['fc2'] for e in model.peft.layers):
        each.up.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad():
        outs = model(images())
    assert seen == model.token_schedule((80, 112))
    with torch.no_grad():
        model.peft.init_weights()
        starts, plain = model(images()), swin(reducer)(images())
    assert [out.shape for out in outs] == [start.shape for start in starts] == [out.shape for out in plain]
    assert not any(torch.allclose(out, start, atol=1e-2) for out, start in zip(outs, starts))


@pytest.mark.parametrize('reducer', CASES, ids=str)
def test_compensator_refuses_what_leaves_a_part_of_a_window(reducer):
    words = f"peft.type='DAR' looks at the whole grid.*'{reducer['type']}' leaves a part: use .*'Adapter'. or 'LoRA'"
    with pytest.raises(UserError, match=words):
        swin(reducer, peft=dict(type='DAR'))
    model = SwinTransformer(**SMALL, peft=dict(type='DAR'))
    with pytest.raises(UserError, match=words):
        model.set_token_reduction(reducer)
    assert type(model.token_reducer).__name__ == 'TokenReducer'


@pytest.mark.parametrize(
    'peft, words',
    [
        (
            dict(type='LoRA', targets=['qkv', 'in_proj']),
            "peft.targets='in_proj' is no linear layer of this backbone: it "
            'has qkv, proj, fc1, fc2 in each of 6 layers, and 0.qkv,',
        ),
        (dict(type='LoRA', targets='6.qkv'), "peft.targets='6.qkv' is no linear layer"),
        (
            dict(type='Adapters'),
            "peft.type='Adapters' is unknown, the nearest is 'Adapter': choose one of Adapter, DAR",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_said_when_it_is_built(peft, words):
    with pytest.raises(UserError, match=words):
        SwinTransformer(**SMALL, peft=peft)


def test_a_twin_has_none_and_a_copy_is_a_model_of_its_own():
    assert apply_token_reduction(Stock(**TINY), None).peft is None
    assert_a_copy_is_its_own(swin(dict(type='GridPool'), peft=dict(type='LoRA')), images())


@pytest.mark.slow
@pytest.mark.parametrize('peft', [dict(type='DAR'), dict(type='LoRA')], ids=str)
def test_compiles_without_a_graph_break(peft):
    model, x = filled(SwinTransformer(**TINY, peft=peft)), images(1, 28, 36)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'peft, count',
    [
        (dict(type='LoRA'), lambda c: 8 * c + 3 * c * 8),
        (dict(type='LoRA', rank=4, targets=['proj', 'fc.']), lambda c: 4 * (c + c) + 4 * (c + 4 * c) + 4 * (4 * c + c)),
        (dict(type='Adapter'), lambda c: c * 72 + 72 + 72 * c + c + 1),
        (
            dict(type='DAR'),
            lambda c: c * 72 + 72 + 72 * c + c + 1 + (c * 48 + 48) + (9 * 48 + 48) + (48 * 48 + 48) + (48 * c + c),
        ),
    ],
    ids=lambda value: '' if callable(value) else str(value),
)
def test_shares_of_a_swin_t_are_counted_by_hand(peft, count):
    model = SwinTransformer(peft=peft)
    norms = 2 * (96 + 192 + 384 + 768)
    trained = sum(count(width) for width in [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2)
    # Of a published Swin-T: without its classifier for 1000 classes and the norm before it.
    frozen = 28_288_354 - (768 * 1000 + 1000) - 2 * 768
    lines = [line.split() for line in table(model).splitlines()]
    assert ['peft', f'{trained:,}', '0', '100.00'] in lines and ['norm3', '1,536', '0', '100.00'] in lines
    assert lines[-1] == [
        'all',
        f'{trained + norms:,}',
        f'{frozen:,}',
        f'{100 * (trained + norms) / (trained + norms + frozen):.2f}',
    ]
