"""The simple feature pyramid against ViTDet's, written out pixel by pixel."""

import math

import pytest
import torch
from mmcv.ops import RoIAlign

from mmtr import UserError
from mmtr.models.necks import LN2d, SimpleFeaturePyramid


def doubled(x, conv):
    """A transposed convolution of 2x2 with stride 2: each pixel becomes four."""
    _, height, width = x.shape
    out = torch.empty(conv.out_channels, 2 * height, 2 * width)
    for row in range(2 * height):
        for column in range(2 * width):
            weight = conv.weight[:, :, row % 2, column % 2]
            out[:, row, column] = conv.bias + x[:, row // 2, column // 2] @ weight
    return out


def normalised(x, norm):
    out = torch.empty_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            pixel = x[:, row, column]
            pixel = (pixel - pixel.mean()) / (pixel.var(unbiased=False) + 1e-6).sqrt()
            out[:, row, column] = norm.weight * pixel + norm.bias
    return out


def halved(x):
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    out = torch.empty(len(x), rows, columns)
    for row in range(rows):
        for column in range(columns):
            out[:, row, column] = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].amax((1, 2))
    return out


def convolved(x, module):
    weight, reach = module.conv.weight, module.conv.kernel_size[0] // 2
    assert module.conv.bias is None
    out = torch.zeros(len(weight), *x.shape[1:])
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for down in range(-reach, reach + 1):
                for right in range(-reach, reach + 1):
                    if 0 <= row + down < x.shape[1] and 0 <= column + right < x.shape[2]:
                        out[:, row, column] += (
                            weight[:, :, down + reach, right + reach] @ x[:, row + down, column + right]
                        )
    return normalised(out, module.norm)


def pyramid():
    torch.manual_seed(0)
    neck = SimpleFeaturePyramid(8, 6)
    for norm in (module for module in neck.modules() if isinstance(module, LN2d)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return neck


@pytest.mark.parametrize('grid', [(4, 6), (3, 5)])
@torch.no_grad()
def test_maps_are_those_of_the_paper(grid):
    neck, x = pyramid(), torch.randn(2, 8, *grid)
    found = neck((torch.zeros(2, 8, 1, 1), x))
    for image in range(2):
        first, norm, _, second = neck.stages[0][0]
        up = normalised(doubled(x[image], first), norm)
        up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        scaled = [doubled(up, second), doubled(x[image], neck.stages[1][0]), x[image], halved(x[image])]
        maps = [convolved(convolved(each, stage[1]), stage[2]) for each, stage in zip(scaled, neck.stages)]
        maps.append(maps[-1][:, ::2, ::2])
        assert [tuple(each.shape[1:]) for each in maps[:3]] == [tuple(n * times for n in grid) for times in (4, 2, 1)]
        torch.testing.assert_close([each[image] for each in found], maps, atol=1e-5, rtol=1e-5)


def test_regions_are_read_from_the_maps_as_they_are():
    maps = pyramid()([torch.randn(1, 8, 4, 4)])
    # One pixel of the finest map.
    region = RoIAlign(1, 1 / 4, sampling_ratio=1)(maps[0], torch.tensor([[0.0, 8.0, 20.0, 12.0, 24.0]]))
    torch.testing.assert_close(region[0, :, 0, 0], maps[0][0, :, 5, 2])


def test_channels_must_be_quartered():
    with pytest.raises(UserError, match='neck.in_channels=6 must be a multiple of 4'):
        SimpleFeaturePyramid(6)
