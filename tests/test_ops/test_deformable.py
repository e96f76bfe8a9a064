import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from mmtr.ops.deformable import deformable_attention

SHAPES = torch.tensor([(5, 7), (3, 4), (1, 2)])
STARTS = torch.tensor([0, 35, 47])
BATCH, QUERIES, HEADS, POINTS, CHANNELS = 2, 11, 3, 2, 4


@pytest.fixture(params=[1, HEADS], ids=['maps of all heads', 'one for each'])
def inputs(request):
    torch.manual_seed(0)
    levels, length = len(SHAPES), int(SHAPES.prod(1).sum())
    value = torch.randn(BATCH, length, request.param, CHANNELS, dtype=torch.double)
    centres = torch.rand(BATCH, QUERIES, levels, 2, dtype=torch.double)
    # Some three pixels away: beyond every border too.
    offsets = 3 * torch.randn(BATCH, QUERIES, HEADS, levels, POINTS, 2, dtype=torch.double)
    weights = torch.rand(BATCH, QUERIES, HEADS, levels, POINTS, dtype=torch.double)
    return [t.requires_grad_() for t in (value, centres, offsets, weights)]


def ours(value, *looks):
    return deformable_attention(value, SHAPES, STARTS, *looks)


def mmcvs(value, centres, offsets, weights):
    locations = centres[:, :, None, :, None] + offsets / SHAPES.flip(1)[:, None]
    value = value.expand(-1, -1, HEADS, -1)
    sums, inside = (
        multi_scale_deformable_attn_pytorch(each, SHAPES, locations, weights).unflatten(2, (HEADS, -1))
        for each in (value, torch.ones_like(value[..., :1]))
    )
    return sums, inside


def test_outputs_and_gradients_are_those_of_mmcv(inputs):
    found, expected = ours(*inputs), mmcvs(*inputs)
    towards = [torch.randn_like(each) for each in expected]
    for a, b in zip(
        (*found, *torch.autograd.grad(found, inputs, towards)),
        (*expected, *torch.autograd.grad(expected, inputs, towards)),
    ):
        torch.testing.assert_close(a, b)


def test_a_query_that_is_no_number_spoils_itself_alone(inputs):
    value, centres, offsets, weights = (t.detach() for t in inputs)
    offsets[1, 2, 0, 1, 1] = float('nan')
    centres[0, 5] = float('inf')
    spoilt = ours(value, centres, offsets, weights)[0].isnan().any(3)
    expected = torch.zeros_like(spoilt)
    expected[1, 2, 0] = expected[0, 5] = True
    assert torch.equal(spoilt, expected)
