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


@pytest.mark.parametrize('full', [1, 2])
def test_eomts_way_of_counting(full):
    """(The release's formula.) Layer i of L: rate^(L - 1 - i), the last ones whole, the embedding as layer 0."""
    segmentor = model()
    segmentor.backbone = DINOv2(img_size=28, embed_dims=8, num_layers=4, num_heads=2, num_registers=4)
    groups = build(segmentor, decay_rate=0.5, num_full_layers=full, decay_vectors=True).param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    inside = {id(p) for group in groups if group['in_backbone'] for p in group['params']}
    assert {group['weight_decay'] for group in groups} == {0.05}
    for name, parameter in segmentor.named_parameters():
        part = name.split('.')
        if part[1] == 'layers':
            index = int(part[2])
            expected = 1.0 if index >= 4 - full else 0.5 ** (4 - 1 - index)
        else:
            expected = 1.0 if part[0] == 'decode_head' or part[1] == 'ln1' else 0.5**3
        assert rates[id(parameter)] == expected, name
        assert (id(parameter) in inside) == name.startswith('backbone.'), name


def test_what_a_method_adds_to_the_backbone_learns_like_a_head():
    segmentor = model()
    reduction = dict(type='Cropr', r=1, layers=(0, 1), num_classes=2)
    segmentor.backbone = DINOv2(img_size=28, embed_dims=8, num_layers=4, num_heads=2, token_reduction=reduction)
    for group in build(segmentor, decay_rate=0.5).param_groups:
        for parameter in group['params']:
            if any(parameter is each for each in segmentor.backbone.token_reducer.parameters()):
                assert group['lr'] == 1.0 and not group['in_backbone']


@pytest.mark.parametrize(
    'paramwise, words',
    [
        (dict(), 'must be dict'),
        (dict(decay_rate=0.9, num_layers=12), 'must be dict'),
        (dict(decay_rate=0), 'decay_rate=0 must be a number above 0'),
        (dict(decay_rate='0.9'), "decay_rate='0.9' must be"),
        (dict(decay_rate=0.9, num_full_layers=4), 'at most the 3 layers'),
        (dict(decay_rate=0.9, decay_vectors=1), 'decay_vectors=1 must be True or False'),
    ],
    ids=str,
)
def test_a_rate_that_cannot_work_is_refused(paramwise, words):
    with pytest.raises(UserError, match=f'paramwise_cfg.*{words}'):
        build(model(), **paramwise)


def test_a_model_without_layers_is_refused():
    with pytest.raises(UserError, match='backbone has layers'):
        build(nn.Linear(2, 2), decay_rate=0.9)
