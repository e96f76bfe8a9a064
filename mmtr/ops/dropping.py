"""Arithmetic of token dropping: random scores, fusing of dropped tokens, and nearest kept tokens."""

from typing import Optional

import torch
from torch import Tensor

from .query_scores import highest

_PRIME = 2**31 - 1


def pseudo_random(n: int, seed: int, device: torch.device) -> Tensor:
    """Hash positions 0 to ``n`` - 1 to pseudo-random numbers from 0 to 1, which depend on ``seed`` alone: (n,).

    A hash, unlike a random generator, can be traced, compiled and exported. It is computed in integers, since a
    hash in floats would magnify rounding differences between libraries.
    """
    value = torch.arange(1, n + 1, device=device)
    for offset in (seed, 1):
        # The fifth power permutes the numbers below this prime, and no product exceeds 64 bits.
        value = (value * 48271 + offset % _PRIME * 16807) % _PRIME
        square = value * value % _PRIME
        value = square * square % _PRIME * value % _PRIME
    return value / _PRIME


def random_rows_columns(grid: tuple[int, int], left: tuple[int, int], seed: int, device: torch.device) -> Tensor:
    """Choose rows and columns of a grid at random: raster positions of what is left, ascending.

    Args:
        grid: (H, W) of the grid.
        left: (rows, columns) that are chosen.
        seed: Seed of the choice; rows and columns are chosen apart.
        device: Device of the result.
    """
    rows, columns = (
        highest(pseudo_random(n, seed + axis, device).unsqueeze(0), count)[0]
        for axis, (n, count) in enumerate(zip(grid, left))
    )
    return (rows.unsqueeze(1) * grid[1] + columns).flatten()


def others(kept: Tensor, n: int) -> Tensor:
    """Return the indices from 0 to ``n`` - 1 that are not in ``kept``: (B, M) -> (B, n - M), ascending."""
    slots = torch.arange(n, device=kept.device).expand(kept.shape[0], n)
    # Kept indices are sorted to the end.
    return slots.scatter_add(1, kept, torch.full_like(kept, n)).sort(1)[0][:, : n - kept.shape[1]]


def fuse_tokens(x: Tensor, weights: Tensor) -> Tensor:
    """Fuse tokens into their weighted mean: (B, N, C) and (B, N) weights >= 0 -> (B, 1, C)."""
    # All weights may underflow to zero; the result must be finite then, too.
    share = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    with torch.autocast(x.device.type, enabled=False):
        return share.to(x.dtype).unsqueeze(1) @ x


def nearest_kept(index: Tensor, grid: tuple[int, int], of: Optional[Tensor] = None) -> Tensor:
    """Find the kept token nearest to each position of the patch grid; of equally near ones, the first.

    Args:
        index: (B, M) raster position of each kept token; H * W for a token without one, which is never chosen.
        grid: (H, W) of the patch grid.
        of: (B, G) raster positions to find a token for; None: all positions.

    Returns:
        Index in ``index`` of the nearest token of each position: (B, G), or (B, H * W) without ``of``.
    """
    height, width = grid
    positions = height * width
    place = torch.arange(positions, device=index.device).unsqueeze(0) if of is None else of
    place, kept = place.unsqueeze(2), index.unsqueeze(1)
    down, right = place // width - kept // width, place % width - kept % width
    # One integer holds distance and position, so that ties are broken alike on every device.
    rank = (down * down + right * right) * (positions + 1) + kept
    return rank.masked_fill(kept == positions, torch.iinfo(rank.dtype).max).argmin(2)
