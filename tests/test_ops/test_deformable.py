import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

import mmtr.ops.deformable as deformable

SHAPES = torch.tensor([(5, 7), (3, 4), (1, 2)])
STARTS = torch.tensor([0, 35, 47])
BATCH, QUERIES, HEADS, POINTS, CHANNELS = 2, 11, 3, 2, 4


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    levels, length = len(SHAPES), int(SHAPES.prod(1).sum())
    value = torch.randn(BATCH, length, HEADS, CHANNELS, dtype=torch.double)
    centres = torch.rand(BATCH, QUERIES, levels, 2, dtype=torch.double)
    # Some three pixels away: beyond every border too.
    offsets = 3 * torch.randn(BATCH, QUERIES, HEADS, levels, POINTS, 2, dtype=torch.double)
    weights = torch.rand(BATCH, QUERIES, HEADS, levels, POINTS, dtype=torch.double)
    return [t.requires_grad_() for t in (value, centres, offsets, weights)]


def mmcvs(value, centres, offsets, weights):
    locations = centres[:, :, None, :, None] + offsets / SHAPES.flip(1)[:, None]
    return multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights)


@pytest.mark.parametrize('piece', [4, 1024])
def test_outputs_and_gradients_are_those_of_mmcv(inputs, piece, monkeypatch):
    monkeypatch.setattr(deformable, 'PIECE', piece)
    value, *rest = inputs
    found, expected = deformable.deformable_attention(value, SHAPES, STARTS, *rest), mmcvs(*inputs)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards)):
        torch.testing.assert_close(a, b)


def test_a_query_that_is_no_number_spoils_itself_alone(inputs):
    value, centres, offsets, weights = (t.detach() for t in inputs)
    offsets[1, 2, 0, 1, 1] = float('nan')
    centres[0, 5] = float('inf')
    found = deformable.deformable_attention(value, SHAPES, STARTS, centres, offsets, weights)
    spoilt = found.isnan().unflatten(2, (HEADS, CHANNELS)).any(3)
    expected = torch.zeros_like(spoilt)
    expected[1, 2, 0] = expected[0, 5] = True
    assert torch.equal(spoilt, expected)
