import math

import pytest
import torch

from mmtr.ops.rotary import evens_first, rotary_table, rotate, spread_over_neighbours
from mmtr.ops.windows import from_windows, to_windows


def turn_slowly(x, row, column):
    """A head's channels (D,) turned as complex numbers, first half of the pairs by row, second by column."""
    pairs = len(x) // 2
    out = [0.0] * len(x)
    for i in range(pairs):
        position, band = (row, i) if i < pairs // 2 else (column, i - pairs // 2)
        angle = position / 10000 ** (band / (pairs // 2))
        turned = complex(x[i], x[pairs + i]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[pairs + i] = turned.real, turned.imag
    return torch.tensor(out)


@pytest.mark.parametrize('grid, window', [((3, 5), None), ((32, 20), None), ((5, 7), 3)], ids=str)
def test_each_position_turns_by_its_row_and_column(grid, window):
    x = torch.randn(2, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary_table(grid, 16, 16, window)
    turned = rotate(x, cos[:-1], sin[:-1])
    for n in range(0, grid[0] * grid[1], 7):
        row, column = divmod(n, grid[1])
        if window is None:
            row, column = row / grid[0] * 16, column / grid[1] * 16
        else:
            row, column = row % window / window * 16, column % window / window * 16
        for head in range(2):
            torch.testing.assert_close(turned[head, n], turn_slowly(x[head, n], row, column), atol=1e-4, rtol=1e-4)


def test_a_token_without_a_position_is_not_turned():
    x = torch.randn(3, 1, 16)
    cos, sin = rotary_table((4, 6), 16, 16)
    assert torch.equal(rotate(x, cos[-1:], sin[-1:]), x)


@pytest.mark.parametrize('channels', [4, 12, 16])
def test_neighbours_turn_by_bands_that_follow_each_other(channels):
    half, grid = channels // 2, (3, 5)
    x = torch.randn(2, 15, channels)
    cos, sin = spread_over_neighbours(rotary_table(grid, channels, half))
    turned = rotate(evens_first(x), cos[:-1], sin[:-1])
    for n in range(15):
        for channel in range(channels):
            position = n // 5 / 3 if channel < half else n % 5 / 5
            angle = position * half / 10000 ** (channel % half % (channels // 4) / (channels // 4))
            other = -x[:, n, channel + 1] if channel % 2 == 0 else x[:, n, channel - 1]
            expected = x[:, n, channel] * math.cos(angle) + other * math.sin(angle)
            place = channel % 2 * half + channel // 2
            torch.testing.assert_close(turned[:, n, place], expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_turned_in_float32():
    x = torch.randn(1, 24, 16)
    cos, sin = rotary_table((4, 6), 16, 16)
    turned = rotate(x.bfloat16(), cos[:-1], sin[:-1])
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(x.bfloat16().float(), cos[:-1], sin[:-1]).bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize('grid, window', [((6, 9), 3), ((5, 7), 3), ((2, 2), 4)], ids=str)
def test_windows_hold_neighbours_and_fit_together_again(grid, window):
    x = torch.randn(2, 3, grid[0] * grid[1], 4)
    windows = to_windows(x, grid, window, -7.0)
    down, across = -(-grid[0] // window), -(-grid[1] // window)
    for image in range(2):
        for row in range(down * window):
            for column in range(across * window):
                number = image * down * across + row // window * across + column // window
                slot = row % window * window + column % window
                inside = row < grid[0] and column < grid[1]
                expected = x[image, :, row * grid[1] + column] if inside else torch.full((3, 4), -7.0)
                assert torch.equal(windows[number, :, slot], expected)
    assert torch.equal(from_windows(windows, grid, window), x)
