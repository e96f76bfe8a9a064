import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmtr import UserError
from mmtr.models.backbones import EVA02, DINOv2


def model():
    segmentor = nn.Module()
    segmentor.backbone = EVA02(img_size=32, patch_size=16, embed_dims=8, num_layers=3, num_heads=2)
    segmentor.decode_head = nn.Conv2d(8, 2, 1)
    return segmentor


def build(segmentor, **paramwise):
    return build_optim_wrapper(
        segmentor,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='mmtr.LayerDecayConstructor',
            paramwise_cfg=paramwise,
        ),
    ).optimizer


def test_every_layer_learns_slower_than_the_one_above():
    segmentor = model()
    segmentor.backbone.layers[1].norm1.weight.requires_grad = False
    found = {
        id(p): (group['lr'], group['weight_decay'])
        for group in build(segmentor, decay_rate=0.5).param_groups
        for p in group['params']
    }
    expected = {
        'decode_head.weight': (1.0, 0.05),
        'decode_head.bias': (1.0, 0.0),
        'backbone.norm.weight': (1.0, 0.0),
        'backbone.layers.2.ffn.fc2.weight': (0.5, 0.05),
        'backbone.layers.2.ffn.fc2.bias': (0.5, 0.0),
        'backbone.layers.1.attn.in_proj.weight': (0.25, 0.05),
        'backbone.layers.1.attn.q_bias': (0.25, 0.0),
        'backbone.layers.0.norm1.weight': (0.125, 0.0),
        'backbone.patch_embed.projection.weight': (0.0625, 0.05),
        'backbone.pos_embed': (0.0625, 0.0),
        'backbone.cls_token': (0.0625, 0.0),
    }
    parameters = dict(segmentor.named_parameters())
    assert {name: found[id(parameters[name])] for name in expected} == expected
    assert len(found) == len(parameters) - 1


def test_registers_are_part_of_the_embedding():
    segmentor = model()
    segmentor.backbone = DINOv2(img_size=28, embed_dims=8, num_layers=3, num_heads=2, num_registers=4)
    found = {
        id(p): (group['lr'], group['weight_decay'])
        for group in build(segmentor, decay_rate=0.5).param_groups
        for p in group['params']
    }
    assert found[id(segmentor.backbone.register_tokens)] == found[id(segmentor.backbone.cls_token)] == (0.0625, 0.0)
    assert found[id(segmentor.backbone.layers[2].ffn.gamma2.weight)] == (0.5, 0.0)


@pytest.mark.parametrize(
    'paramwise', [dict(), dict(decay_rate=0), dict(decay_rate='0.9'), dict(decay_rate=0.9, num_layers=12)], ids=str
)
def test_a_rate_that_cannot_work_is_refused(paramwise):
    with pytest.raises(UserError, match='paramwise_cfg=.* must be dict'):
        build(model(), **paramwise)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match='backbone has layers'):
        build(nn.Linear(2, 2), decay_rate=0.9)
