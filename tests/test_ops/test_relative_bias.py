import pytest
import torch

from mmtr.ops.relative_bias import relative_bias, relative_index


def slow_bias(table, positions, grid):
    """The bias (heads, N, N) of tokens at raster positions, H * W for one without, pair by pair."""
    height, width = grid
    offsets = (2 * height - 1) * (2 * width - 1)
    out = torch.empty(table.shape[1], len(positions), len(positions))
    for i, query in enumerate(positions):
        for j, key in enumerate(positions):
            nowhere = int(query) == height * width, int(key) == height * width
            (a, b), (c, d) = divmod(int(query), width), divmod(int(key), width)
            row = (a - c + height - 1) * (2 * width - 1) + b - d + width - 1
            if any(nowhere):
                row = offsets + {(True, False): 0, (False, True): 1, (True, True): 2}[nowhere]
            out[:, i, j] = table[row]
    return out


@pytest.mark.parametrize('grid', [(3, 5), (4, 1), (1, 1)], ids=str)
def test_the_bias_of_tokens_anywhere(grid):
    height, width = grid
    generator = torch.Generator().manual_seed(0)
    table = torch.randn((2 * height - 1) * (2 * width - 1) + 3, 2, generator=generator)
    # A class token first, tokens in any order, some without a position.
    positions = torch.randint(0, height * width + 1, (3, 7), generator=generator)
    positions[:, 0] = height * width
    found = relative_bias(table, relative_index(positions, positions, grid))
    assert torch.equal(found, torch.stack([slow_bias(table, each, grid) for each in positions]))
    first = relative_bias(table, relative_index(positions[:, :1], positions, grid))
    assert torch.equal(first, found[:, :, :1])
