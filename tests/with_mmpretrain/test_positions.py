"""mmpretrain's BEiTViT and ViTEVA02, whose attention knows positions: as stock, with every method, what is refused."""

import copy

import pytest
import torch
from mmpretrain.models.backbones import BEiTViT, ViTEVA02
from mmpretrain.models.utils import RotaryEmbeddingFast

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.registry import MODELS
from tests.test_reducers.test_contract import CASES

from .test_backbones import ARCH, OUT_TYPES, flat, images, ours, stock

SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
NO_BIAS = dict(use_rel_pos_bias=False, use_abs_pos_emb=True)
BEITS = [
    dict(),
    SHARED,
    NO_BIAS,
    dict(NO_BIAS, with_cls_token=False, out_type='featmap'),
    dict(layer_scale_init_value=0, bias=False, final_norm=True),
    dict(SHARED, use_abs_pos_emb=True, bias=True, patch_size=(16, 8), out_indices=[1, 3]),
    dict(layer_cfgs=dict(ffn_cfg=dict(add_identity=True), attn_cfg=dict(proj_drop_rate=0.1))),
]
EVAS = [
    dict(),
    dict(sub_ln=True, qkv_bias=False),
    dict(with_cls_token=False, out_type='featmap'),
    dict(pre_norm=True, patch_size=(16, 8), out_indices=[1, 3]),
    dict(arch=dict(ARCH, embed_dims=48), final_norm=False),  # an odd number of bands
]
CASES_OF = [
    (kind, {'out_type': out, **given})
    for kind, options in ((BEiTViT, BEITS), (ViTEVA02, EVAS))
    for given in options
    for out in (OUT_TYPES if not given else ('raw',))
]
HOSTS = [(BEiTViT, dict()), (BEiTViT, SHARED), (BEiTViT, NO_BIAS), (ViTEVA02, dict(sub_ln=True))]
hosts = pytest.mark.parametrize('kind, given', HOSTS, ids=('beit', 'shared', 'no_bias', 'eva02'))
METHODS = [cfg for cfg in CASES if cfg['type'] != 'DAR' and not cfg.get('deploy')]
NOTHING_LEFT_OUT = [dict(type='ToMe', r=0), dict(type='EViT', keep_rate=1.0), dict(type='TokenAdapter', ratio=0.0)]


def same(a, b, tolerance=1e-5):
    for each, other in zip(flat(a), flat(b)):
        torch.testing.assert_close(each, other, atol=tolerance * other.abs().max().item(), rtol=tolerance)
    assert len(flat(a)) == len(flat(b))


def sizes(kind, given):
    """Of images that stock takes."""
    biased = kind is BEiTViT and given.get('use_rel_pos_bias', True) or given.get('use_shared_rel_pos_bias')
    return ((64, 96),) if biased else ((64, 96), (80, 112), (57, 130))


@pytest.mark.parametrize('kind, given', CASES_OF, ids=str)
def test_without_a_reduction_it_is_stock(kind, given):
    own, expected = ours(kind, **given), stock(kind, **given)
    models = [own, apply_token_reduction(stock(kind, **given), None)]
    models += [apply_token_reduction(stock(kind, **given), each) for each in NOTHING_LEFT_OUT if own.num_prefix]
    keys, buffers = list(expected.state_dict()), {n: b.clone() for n, b in expected.named_buffers()}
    for model in models:
        assert [key for key in model.state_dict() if not key.startswith('token_reducer')] == keys
    for size in sizes(kind, given):
        with torch.no_grad():
            wanted = expected(images(*size))
            for model in models:
                same(model(images(*size)), wanted)
    for name, buffer in own.named_buffers():  # stock's are replaced in a forward pass
        assert torch.equal(buffer, buffers[name])


@hosts
def test_training_is_that_of_stock(kind, given):
    rates = dict(drop_rate=0.1, drop_path_rate=0.3, out_type='raw')
    if kind is ViTEVA02:
        rates['proj_drop_rate'] = 0.2
    grads = []
    for model in (stock(kind, **rates, **given), ours(kind, **rates, **given)):
        model.train()
        torch.manual_seed(5)
        model(images(64, 96))[0].square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5 * scale + 1e-7, rtol=1e-4)


@hosts
@pytest.mark.parametrize('cfg', METHODS, ids=str)
@torch.no_grad()
def test_every_method_gives_each_image_what_it_gets_alone(kind, given, cfg):
    if cfg['type'] == 'SegFormerPlusPlus' and kind is BEiTViT and given is not NO_BIAS:
        with pytest.raises(UserError, match='or with a bias of positions cannot'):
            ours(kind, **given, token_reduction=cfg)
        return
    model = ours(kind, out_type='featmap', **given, token_reduction=cfg)
    for size in ((64, 96), (80, 112)):
        x = images(*size)
        (together,) = model(x)
        assert together.shape == (2, 32, -(-size[0] // 16), -(-size[1] // 16)) and together.isfinite().all()
        if cfg['type'] != 'Random':
            for i in range(2):
                same(model(x[i : i + 1])[0], together[i : i + 1], 1e-4)


@torch.no_grad()
def test_tokens_keep_the_rotation_of_where_they_stood():
    expected, model = stock(ViTEVA02), ours(ViTEVA02)
    expected(images()), model(images())
    attn, x = expected.layers[0].attn, torch.randn(2, 1 + 35, 32)
    tokens = model._embed(images())
    kept = torch.stack([torch.randperm(35)[:9] for _ in range(2)])
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), 1 + kept], 1)
    q, k, v = attn.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    q, k = (torch.cat([each[:, :, :1], attn.rope(each[:, :, 1:], (5, 7))], 2) for each in (q, k))
    q, k, v = (each.gather(2, rows[:, None, :, None].expand(-1, 4, -1, 8)) for each in (q, k, v))
    dense = attn.proj(((q * attn.scale) @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
    part = x.gather(1, rows.unsqueeze(2).expand(-1, -1, 32))
    at = model.layers[0].attn.at(tokens.replace(x=part, index=kept))
    same([at.branch(part)], [dense])


@torch.no_grad()
def test_a_shared_table_is_the_same_in_each_layer():
    shared, each = ours(BEiTViT, **SHARED), ours(BEiTViT)
    state = shared.state_dict()
    each.load_state_dict(copy.copy(state), strict=False)
    for layer in each.layers:
        assert torch.equal(layer.attn.relative_position_bias_table, shared.rel_pos_bias.relative_position_bias_table)
    for x in (images(64, 96), images()):
        same(each(x), shared(x))
    again = copy.deepcopy(shared)
    again.rel_pos_bias.relative_position_bias_table.zero_()
    assert not torch.allclose(again(images())[0], shared(images())[0])  # the copy has its own


@pytest.mark.parametrize('given', [dict(), SHARED], ids=('each', 'shared'))
@torch.no_grad()
def test_tables_of_another_size_are_resized_when_loaded(given, tmp_path):
    small = ours(BEiTViT, img_size=64, **given)
    expected = small(images(64, 96))
    torch.save(dict(state_dict=small.state_dict()), tmp_path / 'small.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'small.pth'))
    models = [ours(BEiTViT, **given), apply_token_reduction(stock(BEiTViT, **given), None)]
    for model in models:
        model.load_state_dict(small.state_dict())
    for peft in (None, dict(type='LoRA')):
        models.append(ours(BEiTViT, **given, init_cfg=init, peft=peft))
        models[-1].init_weights()
    for model in models:
        same(model.eval()(images(64, 96)), expected)
    name = 'rel_pos_bias' if given else 'layers.0.attn'
    state = {**small.state_dict(), f'{name}.relative_position_bias_table': torch.zeros(60, 4)}
    with pytest.raises(UserError, match=f"The table '{name}.relative_.*' of 'the checkpoint' has 60 rows, which"):
        models[0].load_state_dict(state)


@torch.no_grad()
def test_a_rotary_file_of_another_size_fits(tmp_path):
    small = ours(ViTEVA02, img_size=64)
    torch.save(dict(state_dict=small.state_dict()), tmp_path / 'small.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'small.pth'))
    model = ours(ViTEVA02, init_cfg=init, peft=dict(type='LoRA'))
    model.init_weights()
    same(model(images(64, 96)), small(images(64, 96)))


@hosts
def test_lora_starts_with_nothing_and_is_all_that_is_trained(kind, given):
    model = apply_peft(stock(kind, **given), dict(type='LoRA'))
    same(model.eval()(images(64, 96)), stock(kind, **given)(images(64, 96)))
    model.train()(images(64, 96))[0].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith('peft.') for name in trained)


def test_dropout_of_attention_is_that_of_stock_and_off_in_evaluation():
    model = ours(ViTEVA02, attn_drop_rate=0.2)
    assert model.layers[0].attn.at(None).attention_dropout == 0
    assert model.train().layers[0].attn.at(None).attention_dropout == 0.2
    attn = ours(BEiTViT, layer_cfgs=dict(attn_cfg=dict(attn_drop_rate=0.2))).layers[0].train().attn
    assert attn.at(None).attention_dropout == 0.2


ROPE = RotaryEmbeddingFast(8, (4, 6), theta=100)


@pytest.mark.parametrize(
    'kind, given, message',
    [
        (BEiTViT, dict(use_shared_rel_pos_bias=True), '^use_rel_pos_bias=True and .* exclude each other'),
        (BEiTViT, dict(with_cls_token=False, out_type='raw'), "^with_cls_token=False does not fit mmpretrain's bias"),
        (BEiTViT, dict(layer_cfgs=dict(attn_cfg=dict(qk_scale=0.5))), '^qk_scale=0.5 must be 0.353553, by which'),
        (BEiTViT, dict(attn_drop_rate=0.1), "^BEiTViT has no setting 'attn_drop_rate'"),
        (BEiTViT, dict(frozen_stages=5), '^frozen_stages=5 is more than the 4 layers'),
        (ViTEVA02, dict(layer_cfgs=dict(qk_scale=0.5)), '^qk_scale=0.5 must be 0.353553, by which'),
        (ViTEVA02, dict(layer_cfgs=dict(rope=None)), '^layer_cfgs sets rope, but all layers must have'),
        (ViTEVA02, dict(layer_cfgs=dict(rope=ROPE)), '^layer_cfgs sets rope, but all layers must have'),
        (ViTEVA02, dict(frozen_stages=1), "^ViTEVA02 has no setting 'frozen_stages'"),
        (ViTEVA02, dict(layer_scale_init_value=0.1), "^ViTEVA02 has no setting 'layer_scale_init_value'"),
        (ViTEVA02, dict(arch=dict(ARCH, embed_dims=24)), 'each head must get as many channels, a multiple of 4'),
    ],
    ids=str,
)
def test_settings_that_cannot_work(kind, given, message):
    with pytest.raises(UserError, match=message):
        MODELS.get(kind.__name__)(**{'arch': ARCH, 'img_size': 64, **given})
