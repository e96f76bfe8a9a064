"""After a host has drawn its weights, its learned reducer has its own start, and the host its stock one."""

import math

import pytest
import torch
from torch import nn

from mmtr.models.decode_heads import SegmenterMaskTransformerHead
from mmtr.registry import MODELS

CHANNELS, SIZE = 32, 64
HOSTS = dict(
    VisionTransformer=dict(img_size=SIZE, embed_dims=CHANNELS, num_layers=4, num_heads=2),
    DINOv2=dict(img_size=SIZE, patch_size=16, embed_dims=CHANNELS, num_layers=4, num_heads=2, num_registers=2),
    EVA02=dict(img_size=SIZE, embed_dims=CHANNELS, num_layers=4, num_heads=2),
    ViTDet=dict(img_size=SIZE, embed_dims=CHANNELS, num_layers=4, num_heads=2),
)


def expected(name, module):
    """Standard deviation of the weight of a learned method, as its release starts it."""
    if name == 'queries':
        return CHANNELS**-0.5
    if name == 'head.1':
        return 0.02
    return 1 / math.sqrt(3 * module.weight[0].numel())  # torch: uniform within 1 / sqrt(inputs)


def weights_of(reducer):
    """Name within an auxiliary head, or a selector's, and what was drawn."""
    for name, module in reducer.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            short = name.split('.', 2)[-1]
            yield short, module.weight, expected(short, module)
        elif hasattr(module, 'queries'):
            yield 'queries', module.queries, expected('queries', module)


def check_start(reducer):
    drawn = {}
    for name, weight, std in weights_of(reducer):
        drawn.setdefault((name, std), []).append(weight.detach().flatten())
    assert drawn
    for (name, std), weights in drawn.items():
        weights = torch.cat(weights)
        # Six standard errors of a standard deviation.
        assert abs(weights.std().item() / std - 1) < 6 / math.sqrt(2 * weights.numel()) + 0.03, (name, std)


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize(
    'method', [dict(type='Cropr', num_classes=5, projections=('q', 'k')), dict(type='DAR')], ids=lambda cfg: cfg['type']
)
@pytest.mark.parametrize('init_cfg', [None, dict(type='Normal', layer='Linear', std=3.0)], ids=['own', 'init_cfg'])
def test_a_learned_method_starts_as_released(host, method, init_cfg):
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=f'mmtr.{host}', **HOSTS[host], token_reduction=method, init_cfg=init_cfg))
    check_start(backbone.token_reducer)
    backbone.init_weights()
    check_start(backbone.token_reducer)


def test_so_does_one_in_a_head():
    torch.manual_seed(0)
    head = SegmenterMaskTransformerHead(
        in_channels=CHANNELS,
        channels=CHANNELS,
        embed_dims=CHANNELS,
        num_classes=3,
        num_layers=2,
        num_heads=2,
        token_reduction=dict(type='DAR'),
    )
    head.init_weights()
    check_start(head.token_reducer)


@pytest.mark.parametrize('host', HOSTS)
def test_the_host_starts_as_without_a_reducer(host):
    drawn = []
    for reduction in (None, dict(type='Cropr', num_classes=5)):
        torch.manual_seed(0)
        backbone = MODELS.build(dict(type=f'mmtr.{host}', **HOSTS[host], token_reduction=reduction))
        torch.manual_seed(1)
        backbone.init_weights()
        drawn.append(backbone.state_dict())
    plain, reduced = drawn
    for name in plain.keys() - {'register_tokens'}:  # drawn last
        assert torch.equal(plain[name], reduced[name]), name


def test_a_file_that_brings_the_learned_weights_keeps_them(tmp_path):
    cfg = dict(type='mmtr.VisionTransformer', **HOSTS['VisionTransformer'], token_reduction=dict(type='DAR'))
    trained = MODELS.build(cfg)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    backbone = MODELS.build(dict(cfg, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'trained.pth'))))
    backbone.init_weights()
    for name, value in trained.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
