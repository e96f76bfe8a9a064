"""Tokens that merge into those of cells of a grid: SegFormer++ (Sec. 3), as in ToMe for Stable Diffusion."""

import torch
from torch import Tensor

from .bipartite import Matching
from .matching import similarity


def _split(grid, cell, device):
    """Positions of the tokens of a grid that are not the top left one of their cell, and of those that are."""
    rows, columns = (torch.arange(n, device=device) % cell == 0 for n in grid)
    # argsort in place of nonzero, whose size is not known when compiling.
    order = (rows.unsqueeze(1) & columns).flatten().int().argsort(stable=True)
    return order.split([grid[0] * grid[1] - cells_of(grid, cell), cells_of(grid, cell)])


def cells_of(grid: tuple[int, int], cell: int) -> int:
    """Count the cells of a grid; those at the border may be smaller."""
    return -(-grid[0] // cell) * -(-grid[1] // cell)


def merging(grid: tuple[int, int], share: float, cell: int) -> int:
    """Count the tokens that merge: the ``share`` of all, rounded down, but never the top left one of a cell."""
    count = grid[0] * grid[1]
    return min(int(share * count), count - cells_of(grid, cell))


def cell_matching(metric: Tensor, grid: tuple[int, int], share: float, cell: int) -> Matching:
    """Match tokens to the most similar top left token of any cell; the best matches merge.

    Tokens that neither merge nor are a target come first, the most similar first.

    Args:
        metric: (B, H * W, C) features of the tokens, compared by cosine similarity.
        grid: (H, W) that the tokens form.
        share: Share of all tokens that merge, see ``merging``.
        cell: Rows and columns of a cell.
    """
    sources, targets = _split(grid, cell, metric.device)
    best, nearest = similarity(metric[:, sources], metric[:, targets], 'cosine').max(2)
    order = best.argsort(dim=1, descending=True, stable=True)
    chosen, staying = order.tensor_split([merging(grid, share, cell)], 1)
    kept = torch.cat([sources[staying], targets.expand(metric.shape[0], -1)], 1)
    return Matching(kept, sources[chosen], nearest.gather(1, chosen) + staying.shape[1])


def whole_cells(batch: int, grid: tuple[int, int], cell: int, device: torch.device) -> Matching:
    """Match all tokens of each cell to its top left one; the same for each of a batch."""
    sources, targets = _split(grid, cell, device)
    row, column = sources // grid[1] // cell, sources % grid[1] // cell
    into = row * -(-grid[1] // cell) + column
    return Matching(*(each.expand(batch, -1) for each in (targets, sources, into)))
