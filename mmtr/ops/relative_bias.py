"""Attention bias of relative positions for tokens anywhere in a grid, as in BEiT (Bao et al., arXiv 2106.08254)."""

import torch
from torch import Tensor


def relative_index(queries: Tensor, keys: Tensor, grid: tuple[int, int]) -> Tensor:
    """Find the row of a relative position table for each query and key.

    The table of an (H, W) grid has a row for each of (2 H - 1) * (2 W - 1) offsets, then three for tokens without a
    position, such as the class token: as a query, as a key, as both.

    Args:
        queries: (B, N) raster positions; H * W for a token without one.
        keys: (B, M) raster positions.
        grid: (H, W) of the patch grid.

    Returns:
        (B, N, M).
    """
    height, width = grid
    line, nowhere = 2 * width - 1, height * width
    place, other = (each // width * line + each % width for each in (queries, keys))
    index = place.unsqueeze(2) - other.unsqueeze(1) + (height - 1) * line + width - 1
    offsets, no_query = (2 * height - 1) * line, (queries == nowhere).unsqueeze(2)
    index = index.masked_fill(no_query, offsets)
    return torch.where((keys == nowhere).unsqueeze(1), offsets + 1 + no_query, index)


def relative_bias(table: Tensor, index: Tensor) -> Tensor:
    """Look up the bias of each query and key: (rows, heads) table and (B, N, M) rows of it -> (B, heads, N, M).

    Heads come first in memory, as attention reads them: a CPU takes a third of the time of a look-up of whole rows.
    """
    found = table.t().contiguous().index_select(1, index.flatten())
    return found.unflatten(1, index.shape).transpose(0, 1)
