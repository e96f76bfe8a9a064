import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers.transformer import DeformableDetrTransformerEncoderLayer

import mmtr.models.maskdino.layers as layers

SHAPES = torch.tensor([(6, 8), (3, 4)])
SETTINGS = dict(embed_dims=32, num_heads=4, num_levels=2, num_points=3, dropout=0.0, batch_first=True)


@pytest.mark.parametrize('queries, places_projected', [(7, False), (14, False), (16, True), (60, True)])
@pytest.mark.parametrize('extent', [2, 4])
def test_deformable_attention_has_the_weights_and_outputs_of_mmcv(extent, queries, places_projected):
    check_attention(SETTINGS, extent, queries, places_projected)


@pytest.mark.parametrize('queries, places_projected', [(7, False), (60, True)])
def test_deformable_attention_of_one_head_has_those_of_mmcv(queries, places_projected):
    check_attention(dict(SETTINGS, num_heads=1), 4, queries, places_projected)


def check_attention(settings, extent, queries, places_projected):
    torch.manual_seed(0)
    ours, stock = (kind(**settings).eval() for kind in (layers.DeformableAttention, MultiScaleDeformableAttention))
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(stock.state_dict())
    inputs = dict(
        value=torch.randn(2, 60, 32),
        query_pos=torch.randn(2, queries, 32),
        spatial_shapes=SHAPES,
        reference_points=torch.rand(2, queries, 2, extent),
        level_start_index=torch.tensor([0, 48]),
    )
    query = torch.randn(2, queries, 32)
    calls = []
    ours.value_proj.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():  # torch 2.1 and 2.5 fail where the values need no gradient and their weights do
        torch.testing.assert_close(ours(query, **inputs), stock(query, **inputs), rtol=1e-4, atol=1e-4)
    assert len(calls) == places_projected


def test_an_encoder_layer_in_pieces_has_the_weights_and_outputs_of_mmdet(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(layers, 'PIECE', 16)
    settings = SETTINGS, dict(embed_dims=32, feedforward_channels=24, num_fcs=2, ffn_drop=0.0)
    stock = DeformableDetrTransformerEncoderLayer(*settings).eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = layers.EncoderLayer(*settings).eval()
    ours.load_state_dict(stock.state_dict())
    query = torch.randn(2, 60, 32)
    inputs = dict(
        query_pos=torch.randn(1, 60, 32),
        key_padding_mask=None,
        spatial_shapes=SHAPES,
        valid_ratios=None,
        reference_points=torch.rand(2, 60, 2, 2),
        level_start_index=torch.tensor([0, 48]),
    )
    torch.testing.assert_close(ours(query, **inputs), stock(query, **inputs), rtol=1e-4, atol=1e-4)
