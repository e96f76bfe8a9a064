"""mmpretrain's ViTSAM: as stock without a reduction, reduced as mmtr.ViTDet is, and what is refused."""

import copy
import pickle

import pytest
import torch
from mmpretrain.models.backbones import ViTSAM as Stock

from mmtr import UserError, apply_peft, apply_token_reduction
from mmtr.declared import declarations
from mmtr.models.backbones import ViTDet
from mmtr.registry import MODELS
from tests.hostile_values import HOSTILE, fits

from .test_backbones import drawn, images

Own = MODELS.get('ViTSAM')
ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64, global_attn_indexes=[1])
SMALL = dict(arch=ARCH, img_size=(64, 96), window_size=3, out_channels=8)
NO_NECK = dict(out_channels=0)


def built(kind, **given):
    return drawn(kind(**copy.deepcopy({**SMALL, **given})))


@pytest.mark.parametrize(
    'given',
    [
        dict(),
        dict(NO_NECK, out_indices=[0, 2]),
        dict(out_type='avg_featmap', out_indices=[1, 2]),
        dict(NO_NECK, out_type='avg_featmap', qkv_bias=False, interpolate_mode='bilinear'),
        dict(use_rel_pos=False, use_abs_pos=False, window_size=0),
        dict(use_rel_pos=False, patch_size=(16, 8)),
        dict(layer_cfgs=[dict(), dict(window_size=2), dict(use_rel_pos=False)], patch_cfg=dict(padding=0, stride=12)),
    ],
    ids=str,
)
@torch.no_grad()
def test_without_a_reduction_it_is_stock(given):
    own, stock = built(Own, **given), built(Stock, **given)
    models = [own, apply_token_reduction(built(Stock, **given), None)]
    models.append(apply_token_reduction(built(Stock, **given), dict(type='TokenAdapter', ratio=0.0)))
    assert all(list(model.state_dict()) == list(stock.state_dict()) for model in models)
    # Windows of 3 patches are full, and padded on one side and on both.
    for shape in ((96, 144), (96, 64), (64, 144), (64, 96), (57, 130)):
        expected = stock(images(*shape))
        for model in models:
            outs = model(images(*shape))
            assert len(outs) == len(expected)
            for out, wanted in zip(outs, expected):
                torch.testing.assert_close(out, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-5)
        if not own.out_type.startswith('avg'):
            assert own.token_schedule(shape) == [expected[0][0, 0].numel()] * 3


@pytest.mark.parametrize('with_neck', [True, False])
def test_training_is_that_of_stock(with_neck):
    grads = []
    for kind in (Stock, Own):
        model = built(kind, drop_rate=0.1, drop_path_rate=0.3, out_channels=8 * with_neck)
        model.train()
        torch.manual_seed(1)
        model(images())[0].square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-4 * grad.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize('cfg', [dict(type='GridPool', ratio=0.4), dict(type='ToMe', r=0.3)], ids=str)
@torch.no_grad()
def test_reduced_it_is_vitdet_with_a_neck(cfg):
    cfg = dict(cfg, layers=(1, 3))
    vitdet = ViTDet((64, 96), (64, 96), 16, 3, 32, 3, 4, 2, window_size=3, global_attn_indexes=[1]).eval()
    vitdet.set_token_reduction(cfg)
    stock = built(Stock)
    state = {name.replace('.ln', '.norm'): value for name, value in stock.state_dict().items()}
    state = {
        name.replace('ffn.layers.0.0', 'ffn.fc1').replace('ffn.layers.1', 'ffn.fc2'): value
        for name, value in state.items()
        if not name.startswith('channel_reduction')
    }
    position = state['pos_embed'].flatten(1, 2)
    vitdet.load_state_dict({**state, 'pos_embed': torch.cat([torch.zeros_like(position[:, :1]), position], 1)})
    own, twin = built(Own, token_reduction=cfg), apply_token_reduction(stock, cfg)
    for shape in ((64, 96), (80, 112)):
        expected = stock.channel_reduction(vitdet(images(*shape))[0])
        for model in (own, twin, copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
            torch.testing.assert_close(model(images(*shape))[0], expected, atol=2e-4, rtol=1e-4)
    assert (stock(images())[0] - own(images())[0]).abs().max() > 1e-2


def test_lora_starts_with_nothing_and_is_all_that_is_trained():
    model = apply_peft(built(Stock), dict(type='LoRA', targets=['qkv', 'proj', 'fc1', 'fc2']))
    torch.testing.assert_close(model.eval()(images())[0], built(Stock)(images())[0], atol=1e-4, rtol=1e-4)
    model.train()(images())[0].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all(name.startswith('peft.') for name in trained)


@torch.no_grad()
def test_a_pretrained_file_of_another_size_is_resized_as_by_stock(tmp_path):
    torch.save(dict(state_dict=built(Stock, img_size=64).state_dict()), tmp_path / 'sam.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'sam.pth'))
    stock = Stock(**SMALL)
    stock.load_state_dict(torch.load(tmp_path / 'sam.pth')['state_dict'])
    for given in (dict(), dict(NO_NECK), dict(peft=dict(type='LoRA'))):
        model = Own(**{**SMALL, 'init_cfg': init, **given})
        model.init_weights()
        own, expected = model.state_dict(), stock.state_dict()
        for name in own:
            if not name.startswith('peft.'):
                torch.testing.assert_close(own[name], expected[name])
    with pytest.raises(UserError, match='is not of this ViTSAM: it differs in 6 weights [^;]*$'):
        Own(**{**SMALL, 'out_channels': 4, 'peft': dict(type='LoRA'), 'init_cfg': init}).init_weights()


def test_frozen_stages_are_those_of_stock():
    own, stock = Own(**SMALL, frozen_stages=3), Stock(**SMALL, frozen_stages=3)
    assert [p.requires_grad for p in own.parameters()] == [p.requires_grad for p in stock.parameters()]


@pytest.mark.parametrize(
    'given, said',
    [
        (dict(arch='giant'), "^arch='giant' must be one of b, base, .*global_attn_indexes"),
        (dict(arch=dict(ARCH, num_heads=5)), '^embed_dims=32 and num_heads=5 do not fit'),
        (dict(arch=dict(ARCH, global_attn_indexes=[3])), r'^arch.global_attn_indexes=\(3,\) names layer 3'),
        (dict(out_type='cls_token'), "^out_type='cls_token' must be one of raw, featmap, avg_featmap"),
        (dict(frozen_stages=4), '^frozen_stages=4 is more than the 3 layers'),
        (dict(frozen_stages=1, use_abs_pos=False), '^frozen_stages=1 freezes the position embedding, which'),
        (dict(token_reduction=dict(type='EViT')), 'reads the class token, and this backbone has none: choose another'),
        (dict(token_reduction=dict(type='SegFormerPlusPlus')), 'with a bias of positions cannot'),
        (
            dict(token_reduction=dict(type='Expediting', restore_at='after_head', restore='copy')),
            "^token_reduction.restore_at='after_head' gives the head no map, which out_channels=8 and out_type='raw'",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work(given, said):
    with pytest.raises(UserError, match=said):
        Own(**{**SMALL, **given})


def test_no_hostile_value_is_taken():
    for setting, may_be in declarations(Own).items():
        for value in HOSTILE:
            if not fits(may_be, value, None):
                with pytest.raises(UserError, match=f'^{setting}=.* must be '):
                    Own(**{**SMALL, setting: value})
