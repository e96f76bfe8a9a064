import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmtr.ops.resize import resize_offsets, resize_patches, resize_positions


def weight(distance):
    """Keys' cubic with the parameter -1/2, which timm's models are resized with."""
    d, a = abs(distance), -0.5
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_enlarged_patches_get_the_embedding_that_they_had():
    generator = torch.Generator().manual_seed(0)
    kernel, patches = torch.randn(8, 3, 6, 6, generator=generator), torch.randn(5, 3, 6, 6, generator=generator)
    large = F.interpolate(patches, (9, 8), mode='bicubic', antialias=True)
    torch.testing.assert_close(
        F.conv2d(large, resize_patches(kernel, (9, 8))), F.conv2d(patches, kernel), atol=1e-4, rtol=1e-4
    )
    assert resize_patches(kernel, (6, 6)) is kernel


def test_positions_are_interpolated_on_the_grid_and_the_prefix_stays():
    table = torch.randn(1, 2 + 6 * 8, 3, generator=torch.Generator().manual_seed(0))
    out = resize_positions(table, (6, 8), (9, 16), 2)
    assert out.shape == (1, 2 + 9 * 16, 3) and torch.equal(out[:, :2], table[:, :2])
    for row, column in ((3, 4), (4, 11), (5, 8)):  # away from the border
        y, x = (row + 0.5) * 6 / 9 - 0.5, (column + 0.5) * 8 / 16 - 0.5
        expected = sum(weight(y - r) * weight(x - c) * table[0, 2 + r * 8 + c] for r in range(6) for c in range(8))
        torch.testing.assert_close(out[0, 2 + row * 16 + column], expected, atol=1e-5, rtol=1e-4)
    assert resize_positions(table, (6, 8), (6, 8), 2) is table


def slow_offsets(table, old, new):
    """Offsets of one axis, old ones at distances that grow by a factor; a table (2 m - 1,) and numbers of positions."""
    places = [0.0]
    roots = np.roots([1] * (old - 2) + [2 - new])  # the distances sum to new - 1
    factor = next(root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0)
    for k in range(old - 1):
        places.append(places[-1] + factor**k)
    out = []
    for offset in range(1 - new, new):
        left = max(k for k in range(old) if places[k] <= abs(offset) + 1e-9)
        # Between two places the factor counts evenly.
        between = math.log((abs(offset) - places[left]) * (factor - 1) / factor**left + 1) / math.log(factor)
        place = (left + between) * (1 if offset > 0 else -1)
        shares = [weight(place - k) for k in range(1 - old, old)]
        out.append(sum(share * value for share, value in zip(shares, table)) / sum(shares))
    return torch.stack(out)


def test_offsets_are_put_at_growing_distances_and_other_rows_stay():
    table = torch.randn(7 * 9 + 3, 2, generator=torch.Generator().manual_seed(0))
    out = resize_offsets(table, (4, 5), (7, 8))
    assert out.shape == (13 * 15 + 3, 2) and torch.equal(out[-3:], table[-3:])
    grid = table[:-3].view(7, 9, 2)
    columns = torch.stack([slow_offsets(row, 5, 8) for row in grid])
    expected = slow_offsets(columns, 4, 7)
    torch.testing.assert_close(out[:-3].view(13, 15, 2), expected.float(), atol=1e-5, rtol=0)
    # The nearest offsets keep their rows.
    torch.testing.assert_close(out[:-3].view(13, 15, 2)[5:8, 6:9], grid[2:5, 3:6], atol=1e-5, rtol=0)


@pytest.mark.parametrize('old, new, kept', [((1, 1), (3, 2), None), ((2, 3), (5, 4), None), ((4, 5), (2, 3), (2, 2))])
def test_a_table_of_one_value_stays_so_and_a_smaller_one_is_cut(old, new, kept):
    rows, columns = (2 * n - 1 for n in old)
    out = resize_offsets(torch.full((rows * columns, 1), 3.0), old, new)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))
    if kept:
        table = torch.randn(rows, columns, 2)
        found = resize_offsets(table.flatten(0, 1), old, new)
        cut = table[kept[0] : rows - kept[0], kept[1] : columns - kept[1]]
        torch.testing.assert_close(found, cut.flatten(0, 1), atol=1e-6, rtol=0)
