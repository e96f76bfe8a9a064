"""What ``peft`` adds to a backbone, what it freezes, and what it refuses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.declared import declarations
from mmtr.models.backbones import VisionTransformer
from mmtr.models.backbones.common.layer import run_layer
from mmtr.peft import build_peft
from mmtr.peft.freezing import table
from mmtr.reducers import BackboneInfo

from ..test_reducers.test_contract import BACKBONES, CASES, eva02, images, train_step, vit

SELECT = dict(type='DAR')
ALL = dict(type='DAR', threshold=0.0)
PEFTS = [
    dict(type='DAR'),
    dict(type='DAR', norm='in', dropout=0.2, bottleneck=5, compensator=7, scale=0.1),
    dict(type='Adapter'),
    dict(type='Adapter', norm='out', bottleneck=3),
    dict(type='LoRA'),
    dict(type='LoRA', rank=3, alpha=6.0, dropout=0.1, targets=['qkv|proj', 'fc.', '1.qkv']),
]
every_peft = pytest.mark.parametrize('peft', PEFTS, ids=str)
every_backbone = pytest.mark.parametrize('backbone', BACKBONES, ids=lambda build: build.__name__)


def plain_of(backbone, model):
    """The same backbone with the frozen weights alone."""
    plain = backbone(None)
    plain.load_state_dict(
        {name: value for name, value in model.state_dict().items() if not name.startswith(('peft.', 'token_reducer.'))}
    )
    return plain


@every_peft
@every_backbone
def test_at_the_start_a_layer_is_the_frozen_layer(peft, backbone):
    model = backbone(ALL, peft=peft)
    model.peft.init_weights()
    plain = plain_of(backbone, model)
    with torch.no_grad():
        for out, expected in zip(model(images()), plain(images())):
            assert torch.equal(out, expected)


@every_peft
@every_backbone
def test_stock_keys_are_as_without_and_nothing_else_is_added(peft, backbone):
    without, model = backbone(None), backbone(None, peft=peft)
    assert {name for name in model.state_dict() if not name.startswith('peft.')} == without.state_dict().keys()
    assert not any(name.startswith('peft') for name in without.state_dict())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith('peft.')
    }


@every_peft
@every_backbone
@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients_reach_all_that_is_trained_and_nothing_frozen(peft, backbone, with_cp):
    model = backbone(SELECT, peft=peft, with_cp=with_cp).train()
    outs, loss = train_step(model, images())
    (sum(out.square().mean() for out in outs) + loss).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(('peft.', 'token_reducer.')):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None and not parameter.requires_grad, name


@every_peft
@every_backbone
def test_what_is_frozen_is_in_eval_mode_while_the_rest_trains(peft, backbone):
    # Where a host has drop path, it is off in what is frozen.
    rate = dict(drop_path_rate=0.3) if 'drop_path_rate' in declarations(type(backbone(None))) else {}
    model = backbone(SELECT, peft=peft, **rate).train()
    assert model.training and model.peft.training and model.token_reducer.training
    assert all(module.training for module in [*model.peft.modules(), *model.token_reducer.modules()])
    assert not any(module.training for module in [*model.layers.modules(), *model.patch_embed.modules()])
    assert not any(module.training for module in model.eval().modules())
    # The first batch of a fresh model is run without a call of train().
    assert not any(
        module.training
        for module in VisionTransformer(
            img_size=32, embed_dims=32, num_layers=2, num_heads=4, peft=peft
        ).layers.modules()
    )


@every_peft
@every_backbone
def test_an_image_is_as_it_is_alone(peft, backbone):
    # In float32 a rounding error can carry a patch over the threshold of the selection.
    model, x = backbone(SELECT, peft=peft).double(), images(8, 48, 112).double()
    with torch.no_grad():
        for i, out in enumerate(model(x)[1]):
            torch.testing.assert_close(out, model(x[i : i + 1])[1][0], atol=1e-10, rtol=1e-10)


@every_peft
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_dtype_in_is_dtype_out(peft, dtype):
    model = vit(SELECT, peft=peft)
    with torch.no_grad(), torch.autocast('cpu', dtype):
        assert [out.dtype for out in model(images())] == [out.dtype for out in vit(None)(images())]
    with torch.no_grad():
        outs = model.to(dtype)(images().to(dtype))
    assert all(out.dtype == dtype and out.isfinite().all() for out in outs)


@pytest.mark.parametrize(
    'peft', [pytest.param(peft, marks=[pytest.mark.slow] * (peft != dict(type='DAR'))) for peft in PEFTS], ids=str
)
def test_compiles_without_a_graph_break(peft):
    model = vit(None, peft=peft)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    with torch.no_grad():
        for out, eager in zip(compiled(images()), model(images())):
            torch.testing.assert_close(out, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('height, width, with_cls_token', [(80, 112, True), (48, 176, False)])
def test_branch_is_adapter_and_compensator_of_the_tokens_as_they_are(height, width, with_cls_token):
    model = vit(None, peft=dict(type='DAR', bottleneck=6, compensator=5, scale=0.7), with_cls_token=with_cls_token)
    plain = plain_of(lambda cfg: vit(cfg, with_cls_token=with_cls_token), model)
    layer, state = plain.layers[2], {n.split('.', 1)[1]: v for n, v in model.peft.state_dict().items()}
    for name, value in model.peft.state_dict().items():
        if name.endswith('bias'):
            torch.nn.init.normal_(value)
    adapter, compensator = (
        {name.partition('.')[2]: value for name, value in getattr(model.peft, part)[2].state_dict(prefix='.').items()}
        for part in ('adapters', 'compensators')
    )
    assert state
    tokens = model._embed(images(2, height, width))
    with torch.no_grad():
        out = run_layer(model.layers[2], tokens, model.token_reducer, 2, model.peft).x
        x = tokens.x + layer.attn.branch(layer.norm1(tokens.x))
        expected = x + layer.ffn.layers(layer.norm2(x))
        branch = (
            F.relu(x @ adapter['down.weight'].T + adapter['down.bias']) @ adapter['up.weight'].T + (adapter['up.bias'])
        )
        grid = x[:, tokens.num_prefix :].transpose(1, 2).reshape(2, 32, *tokens.grid)
        for name, groups in (('down', 1), ('depthwise', 5), ('mix', 1), ('gelu', 1), ('up', 1)):
            if name == 'gelu':
                grid = grid * 0.5 * (1 + torch.erf(grid / math.sqrt(2)))
                continue
            weight = compensator[f'{name}.weight']
            weight = weight if weight.dim() == 4 else weight[:, :, None, None]
            grid = F.conv2d(grid, weight, compensator[f'{name}.bias'], padding=weight.shape[-1] // 2, groups=groups)
        branch[:, tokens.num_prefix :] += grid.flatten(2).transpose(1, 2)
        expected += 0.7 * branch
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-4)


@every_backbone
@pytest.mark.parametrize(
    'targets, names',
    [
        ('qkv', ['qkv'] * 4),
        (['proj', '3.fc1'], ['proj'] * 3 + ['proj fc1']),
        ('[02].(qkv|fc2)', ['qkv fc2', '', 'qkv fc2', '']),
    ],
)
def test_lora_is_another_weight(backbone, targets, names):
    model = backbone(None, peft=dict(type='LoRA', rank=3, alpha=6.0, targets=targets))
    assert [' '.join(each) for each in model.peft.layers] == names
    merged = backbone(None)
    merged.load_state_dict(model.peft.merged_state_dict(model))
    by_hand = plain_of(backbone, model)
    with torch.no_grad():
        for layer, each in zip(by_hand.layers, model.peft.layers):
            for name, low_rank in each.items():
                layer.linears()[name][1].add_(2 * low_rank.up.weight @ low_rank.down.weight)
        frozen = plain_of(backbone, model)(images())[1]
        outs = [m(images())[1] for m in (model, merged, by_hand)]
    assert (outs[0] - frozen).abs().max() > 0.1
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_lora_of_every_layer_goes_through_its_weight():
    # What a hook does not reach would show: each linear layer alone must change the output.
    for backbone in BACKBONES:
        for target in ('qkv', 'proj', 'fc1', 'fc2'):
            model = backbone(None, peft=dict(type='LoRA', targets=f'3.{target}'))
            with torch.no_grad():
                assert not torch.allclose(model(images())[1], plain_of(backbone, model)(images())[1], atol=1e-3)


def assert_a_copy_is_its_own(model, x):
    with torch.no_grad():
        before = model(x)[1]
        twin = copy.deepcopy(model)
        for parameter in model.peft.parameters():
            parameter.zero_()
        assert torch.equal(twin(x)[1], before) and not torch.equal(model(x)[1], before)


@every_backbone
def test_a_copy_is_a_model_of_its_own(backbone):
    assert_a_copy_is_its_own(backbone(SELECT, peft=dict(type='LoRA')), images())


@pytest.mark.parametrize('reducer', [cfg for cfg in CASES if cfg['type'] != 'Cropr'], ids=str)
@pytest.mark.parametrize('peft', [dict(type='Adapter'), dict(type='LoRA')], ids=str)
def test_adapter_and_lora_work_with_every_reducer(reducer, peft):
    model = vit(reducer, peft=peft)
    with torch.no_grad():
        assert [out.shape for out in model(images())] == [(2, 32, 5, 7)] * 2
        assert not torch.equal(model(images())[1], vit(reducer)(images())[1])


@pytest.mark.parametrize('reducer', [cfg for cfg in CASES if cfg['type'] != 'DAR'], ids=str)
def test_compensator_refuses_what_leaves_no_grid(reducer):
    with pytest.raises(UserError, match=f"peft.type='DAR' looks at the whole grid.*'{reducer['type']}' leaves a part"):
        vit(reducer, peft=dict(type='DAR'))
    model = vit(None, peft=dict(type='DAR'))
    with pytest.raises(UserError, match='looks at the whole grid'):
        model.set_token_reduction(reducer)
    assert type(model.token_reducer).__name__ == 'TokenReducer'


@pytest.mark.parametrize(
    'peft, words',
    [
        (dict(type='DARE'), "peft.type='DARE' is unknown, the nearest is 'DAR': choose one of Adapter, DAR, LoRA"),
        ('DAR', "peft='DAR' must be None or dict"),
        (dict(type='Adapter', compensator=3), "peft of type Adapter has no setting 'compensator'"),
        (dict(type='DAR', bottleneck=0), 'peft.bottleneck=0 must be a whole number from 1 to'),
        (dict(type='DAR', compensator=1.5), 'peft.compensator=1.5 must be a whole number'),
        (dict(type='Adapter', norm='both'), "peft.norm='both' must be one of none, in, out"),
        (dict(type='Adapter', dropout=1.0), 'peft.dropout=1.0 must be a probability'),
        (dict(type='Adapter', scale=0), 'peft.scale=0 must be a number above 0'),
        (dict(type='LoRA', rank=0), 'peft.rank=0'),
        (dict(type='LoRA', alpha=0), 'peft.alpha=0'),
        (
            dict(type='LoRA', targets=['qkv', 'q']),
            "peft.targets='q' is no linear layer of this backbone: it has qkv, proj, fc1, fc2 in each of 4 layers",
        ),
        (dict(type='LoRA', targets='4.qkv'), "peft.targets='4.qkv' is no linear layer"),
        (dict(type='LoRA', targets='(qkv'), r"peft.targets='\(qkv' is no regular expression"),
    ],
)
def test_what_cannot_work_is_said_when_it_is_built(peft, words):
    with pytest.raises(UserError, match=words):
        vit(None, peft=peft)


def test_share_of_a_vit_b_is_counted_by_hand():
    model = VisionTransformer(
        img_size=512, embed_dims=768, num_layers=12, num_heads=12, token_reduction=SELECT, peft=dict(type='DAR')
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = 768 * 72 + 72 + 72 * 768 + 768
    compensator = (768 * 48 + 48) + (9 * 48 + 48) + (48 * 48 + 48) + (48 * 768 + 768)
    assert trained == 12 * (adapter + compensator + 1 + 9 * 768 + 1) == 2_348_664
    # Of a published ViT-B: 85.8 million parameters with 1024 positions in place of 196.
    frozen = 85_798_656 + (1024 - 196) * 768 - 1536
    assert trained / (trained + frozen) == pytest.approx(trained / sum(p.numel() for p in model.parameters()), rel=0.01)
    lines = [line.split() for line in table(model).splitlines()]
    assert ['all', '2,348,664', f'{sum(p.numel() for p in model.parameters()) - trained:,}', '2.65'] in lines
    assert [line for line in lines if line[0] == 'peft'][0][1:] == ['2,265,708', '0', '100.00']


def test_init_weights_of_a_backbone_leaves_the_branches_at_zero(tmp_path):
    model = VisionTransformer(img_size=32, embed_dims=32, num_layers=2, num_heads=4, peft=dict(type='DAR'))
    model.init_weights()
    assert all(not each.up.weight.any() for each in [*model.peft.adapters, *model.peft.compensators])
    assert all(float(scale.weight) == 2 for scale in model.peft.scales)
    assert float(build_peft(dict(type='Adapter'), BackboneInfo(1, 8, 1)).scales[0].weight) == pytest.approx(0.1)
    state = eva02(None).state_dict()
    torch.save(state, tmp_path / 'base.pth')
    from mmtr.models.backbones import EVA02

    model = EVA02(
        img_size=(64, 96),
        embed_dims=32,
        num_layers=4,
        num_heads=4,
        peft=dict(type='LoRA'),
        pretrained=str(tmp_path / 'base.pth'),
    )
    model.init_weights()
    assert torch.equal(model.layers[1].ffn.fc1.weight, state['layers.1.ffn.fc1.weight'])
    assert not model.peft.layers[0].qkv.up.weight.any()
