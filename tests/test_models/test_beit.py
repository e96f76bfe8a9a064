"""BEiT and MAE against mmseg's, whose forward takes images of one size alone."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.utils import get_installed_path
from mmseg.models import backbones as stock_backbones
from mmseg.registry import MODELS

from mmtr import UserError, apply_token_reduction
from mmtr.models.backbones import MAE, BEiT
from mmtr.models.backbones.beit.layer import BiasedAttentionAt
from mmtr.ops.attention import attention_weights
from mmtr.reducers.observer import Observer, reducer_of
from tests.test_ops.test_relative_bias import slow_bias

SMALL = dict(img_size=(64, 96), embed_dims=32, num_layers=3, num_heads=4, init_values=0.5, out_indices=(0, 2))
both = pytest.mark.parametrize('host', (BEiT, MAE), ids=lambda host: host.__name__)
NOTHING_LEFT_OUT = [dict(type='TokenAdapter', ratio=0.0), dict(type='ToMe', r=0), dict(type='EViT', keep_rate=1.0)]


def drawn(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.5)
    return model


def pair(host, **kwargs):
    """mmseg's backbone with weights that matter, and ours with the same."""
    stock, ours = getattr(stock_backbones, host.__name__)(**{**SMALL, **kwargs}), host(**{**SMALL, **kwargs})
    assert list(stock.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(drawn(stock).state_dict(), strict=True)
    return stock, ours


def same(ours, stock, x, tolerance=1e-5):
    ours.eval()
    stock.eval()
    with torch.no_grad():
        for out, expected in zip(ours(x), stock(x)):
            torch.testing.assert_close(out, expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize(
    'host, kwargs',
    [
        (BEiT, dict()),
        (BEiT, dict(qv_bias=False, final_norm=True)),
        (BEiT, dict(patch_norm=True, img_size=(57, 107))),  # the border fills no patch
        (BEiT, dict(img_size=64, out_indices=-1, token_reduction=NOTHING_LEFT_OUT[2])),
        (MAE, dict()),
        (MAE, dict(final_norm=True, token_reduction=NOTHING_LEFT_OUT[0])),
        (MAE, dict(attn_backend='math', token_reduction=NOTHING_LEFT_OUT[1])),
    ],
    ids=str,
)
def test_outputs_are_the_stock_ones(host, kwargs):
    own = {key: kwargs[key] for key in ('attn_backend', 'token_reduction') if key in kwargs}
    stock, ours = pair(host, **{key: value for key, value in kwargs.items() if key not in own})
    if own:
        state, ours = ours.state_dict(), host(**{**SMALL, **kwargs})
        ours.load_state_dict(state)
    side = ours.img_size
    same(ours, stock, torch.randn(2, 3, *side))
    same(apply_token_reduction(stock, own.get('token_reduction')), stock, torch.randn(2, 3, *side))


@both
def test_training_draws_the_same_drop_path_and_gives_the_same_gradients(host):
    x, grads = torch.randn(4, 3, 64, 96), []
    models = pair(host, drop_path_rate=0.5)
    checkpointed = copy.deepcopy(models[1])
    for layer in checkpointed.layers:
        layer.with_cp = True
    for model in (*models, checkpointed):
        model.train()
        torch.manual_seed(1)
        model(x)[1].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        scale = grad.abs().max().item()
        for found in grads[1:]:
            torch.testing.assert_close(found[name], grad, atol=1e-5 * scale, rtol=1e-3)


@both
def test_layers_and_their_parts_give_users_hooks_what_stock_gives(host):
    heard = []
    for model in pair(host):
        model.eval()
        for name in ('layers.1', 'layers.1.attn', 'layers.1.ffn', 'layers.1.attn.proj', 'layers.1.ffn.layers'):
            model.get_submodule(name).register_forward_hook(lambda module, args, out: heard.append((args[0], out)))
        with torch.no_grad():
            model(torch.ones(1, 3, 64, 96))
    assert len(heard) == 10
    for (x, out), (own_x, own_out) in zip(heard[:5], heard[5:]):
        torch.testing.assert_close(own_x, x, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own_out, out, atol=1e-4, rtol=1e-4)


class Ear(Observer):
    """Keeps the attention, its input and the tokens of a layer."""

    def attention(self, i, attn, x, tokens):
        self.heard.append((attn, x, tokens))
        return self.inner.attention(i, attn, x, tokens)


def heard_by(model, x):
    with torch.no_grad(), reducer_of(model, Ear(model.token_reducer)) as ear:
        ear.heard = []
        model.eval()(x)
    return ear.heard


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='TokenAdapter', score='max', ratio=0.4, layers=(1, 3)),
        dict(type='GridPool', ratio=(0.5, 0.3), layers=(1, 3)),
        dict(type='EViT', keep_rate=0.5, layers=[0, 1]),
        dict(type='ToMe', mode='progressive', r=7),
        dict(type='Cropr', r=5, layers=[0, 1], deploy=True, fusion='none'),
        dict(type='ALGM', threshold=0.2, local_layer=0, global_layer=1),
    ],
    ids=str,
)
@torch.no_grad()
def test_reduced_tokens_keep_the_bias_of_where_they_stood(cfg):
    model = drawn(BEiT(**SMALL, token_reduction=cfg))
    attn, x, tokens = heard_by(model, torch.randn(2, 3, 64, 96))[2]
    assert isinstance(attn, BiasedAttentionAt) and x.shape[1] < 25
    q, k, v = attn.qkv(x)
    table = attn.module.relative_position_bias_table
    positions = torch.cat([torch.full((2, 1), 24), tokens.positions], 1)
    bias = torch.stack([slow_bias(table, each, (4, 6)) for each in positions])
    extra = torch.randn(2, 1, 1, x.shape[1])
    for given, added in ((None, bias), (extra, bias + extra)):
        dense = attn.project((attention_weights(q, k, added) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attn.attend(q, k, v, given), dense, atol=1e-4, rtol=1e-4)


@both
@torch.no_grad()
def test_other_sizes_stretch_the_tables_and_do_not_depend_on_the_batch(host):
    model = drawn(host(**SMALL, token_reduction=dict(type='ToMe', r=0.3, proportional_attention=True))).eval()
    for size in ((96, 64), (64, 160), (32, 48)):
        x = torch.randn(3, 3, *size)
        together = model(x)
        assert tuple(together[1].shape) == (3, 32, size[0] // 16, size[1] // 16)
        for i in range(3):
            for out, alone in zip(together, model(x[i : i + 1])):
                torch.testing.assert_close(out[i : i + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_methods_that_rank_by_attention_see_the_bias():
    model = drawn(BEiT(**SMALL))
    # The bias alone decides: without it all tokens would be alike.
    model.layers[1].attn.qkv.weight.zero_()
    model.layers[1].attn.q_bias.zero_()
    x = torch.randn(2, 3, 64, 96)
    everywhere = torch.arange(25).roll(1).expand(2, -1)
    bias = slow_bias(model.layers[1].attn.relative_position_bias_table, everywhere[0], (4, 6))
    dense = bias.softmax(-1)
    model.set_token_reduction(dict(type='TokenAdapter', score='attn', layers=(2, 3), ratio=0.3))
    attn, normed, tokens = heard_by(model, x)[1]
    _, notes = model.token_reducer.attention(1, attn, normed, tokens)
    expected = dense.mean((0, 1))[1:].view(1, 4, 6).expand(2, -1, -1)
    torch.testing.assert_close(notes['received'], expected, atol=1e-6, rtol=1e-5)
    # Half of the tokens are gone, and one without a position is there.
    model.set_token_reduction(dict(type='EViT', keep_rate=0.5, layers=[0, 1]))
    attn, normed, tokens = heard_by(model, x)[1]
    positions = torch.cat([torch.full((2, 1), 24), tokens.positions], 1)
    assert (positions[:, -1] == 24).all()
    _, notes = model.token_reducer.attention(1, attn, normed, tokens)
    table = model.layers[1].attn.relative_position_bias_table
    expected = torch.stack([slow_bias(table, each, (4, 6)).softmax(-1)[:, 0, 1:].mean(0) for each in positions])
    torch.testing.assert_close(notes['class_attention'], expected, atol=1e-6, rtol=1e-5)


@both
def test_a_pretrained_file_of_another_size_is_resized(host, tmp_path):
    smaller = drawn(host(**{**SMALL, 'img_size': (64, 64)}))
    file = str(tmp_path / 'small.pth')
    torch.save(dict(state_dict=smaller.state_dict()), file)
    init = dict(type='Pretrained', checkpoint=file)
    loaded = host(**SMALL, init_cfg=init, token_reduction=dict(type='Cropr', layers=[0]))
    loaded.init_weights()
    with_peft = host(**SMALL, init_cfg=init, peft=dict(type='LoRA'))
    with_peft.init_weights()
    with torch.no_grad():
        expected = smaller.eval()(torch.ones(1, 3, 64, 96))
        for model in (loaded, with_peft):
            model.eval().set_token_reduction(None)
            for out, own in zip(expected, model(torch.ones(1, 3, 64, 96))):
                torch.testing.assert_close(own, out, atol=1e-4, rtol=1e-4)


def test_a_pretrained_file_leaves_the_reducer_as_its_method_draws_it(tmp_path):
    torch.save(BEiT(**SMALL).state_dict(), tmp_path / 'plain.pth')
    model = BEiT(**SMALL, pretrained=str(tmp_path / 'plain.pth'), token_reduction=dict(type='Cropr', layers=[0]))
    model.init_weights()
    # torch draws linear layers up to 1 / sqrt(inputs), mmseg with a deviation of 0.02.
    assert model.token_reducer.heads['layer_00'].mlp[1].weight.abs().max() > 0.15


def test_what_has_no_effect_or_does_not_fit_is_refused():
    with pytest.raises(UserError, match="attn_drop_rate=0.1 has no effect in mmseg's MAE"):
        MAE(**SMALL, attn_drop_rate=0.1)
    with pytest.raises(UserError, match='embed_dims=32 and num_heads=5'):
        BEiT(**{**SMALL, 'num_heads': 5})
    with pytest.raises(UserError, match='names layer 3'):
        BEiT(**{**SMALL, 'out_indices': (3,)})
    with pytest.raises(UserError, match='or with a bias of positions cannot'):
        apply_token_reduction(stock_backbones.BEiT(**SMALL), dict(type='SegFormerPlusPlus'))


CONFIGS = Path(get_installed_path('mmseg')) / '.mim' / 'configs'


@pytest.mark.parametrize(
    'path', sorted([*CONFIGS.glob('beit/*.py'), *CONFIGS.glob('mae/*.py')]), ids=lambda path: path.stem
)
def test_stock_configs_take_the_key_and_the_function(path):
    cfg = Config.fromfile(path).model
    cfg.pretrained = None
    cfg.backbone.update(num_layers=4, out_indices=(0, 1, 2, 3), embed_dims=48, img_size=(64, 64))
    cfg.neck.update(embed_dim=48, norm_cfg=dict(type='BN'))
    cfg.decode_head.update(in_channels=[48] * 4, channels=8, norm_cfg=dict(type='BN'))
    cfg.auxiliary_head.update(in_channels=48, channels=8, norm_cfg=dict(type='BN'))
    reduction = dict(type='GridPool', layers=(1, 4))
    with DefaultScope.overwrite_default_scope('mmseg'):
        stock = MODELS.build(cfg)
        cfg.backbone.update(type=f'mmtr.{cfg.backbone.type}', token_reduction=reduction)
        ours = MODELS.build(cfg)
    ours.load_state_dict(drawn(stock).state_dict())
    apply_token_reduction(stock, reduction)
    assert type(stock.backbone) is type(ours.backbone) in (BEiT, MAE)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x, mode='tensor'), stock.eval()(x, mode='tensor'))
