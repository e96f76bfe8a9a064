"""Dropping tokens, and giving the positions that they left a token again."""

from typing import Optional

import torch
from torch import Tensor

_PRIME = 2**31 - 1


def pseudo_random(n: int, seed: int, device: torch.device) -> Tensor:
    """Numbers from 0 to 1 that depend on position and ``seed`` alone: (n,).

    A hash of the position instead of a generator: it can be traced, compiled and exported. In whole numbers,
    since a hash in floats magnifies by how little the sines of two libraries differ.
    """
    value = torch.arange(1, n + 1, device=device)
    for offset in (seed, 1):
        # The fifth power permutes the numbers below this prime, and no product exceeds 64 bits.
        value = (value * 48271 + offset % _PRIME * 16807) % _PRIME
        square = value * value % _PRIME
        value = square * square % _PRIME * value % _PRIME
    return value / _PRIME


def others(kept: Tensor, n: int) -> Tensor:
    """The slots that are not among ``kept``: (B, M) of 0 to ``n`` - 1 -> (B, n - M), ascending."""
    slots = torch.arange(n, device=kept.device).expand(kept.shape[0], n)
    # Kept slots go to the end.
    return slots.scatter_add(1, kept, torch.full_like(kept, n)).sort(1)[0][:, : n - kept.shape[1]]


def fuse_tokens(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of tokens: (B, N, C) and (B, N) weights >= 0 -> (B, 1, C)."""
    # Weights may underflow to zeros: then the tokens do not matter, but the result must be finite.
    share = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    with torch.autocast(x.device.type, enabled=False):
        return share.to(x.dtype).unsqueeze(1) @ x


def nearest_kept(index: Tensor, grid: tuple[int, int], of: Optional[Tensor] = None) -> Tensor:
    """Which kept token is nearest to each position of the grid; of equally near ones, the first.

    Args:
        index: (B, M) raster position of each kept token; H * W for one that has none, which is never chosen.
        grid: (H, W).
        of: (B, G) of these positions alone.

    Returns:
        (B, H * W), or (B, G): slots of ``index``.
    """
    height, width = grid
    positions = height * width
    place = torch.arange(positions, device=index.device).unsqueeze(0) if of is None else of
    place, kept = place.unsqueeze(2), index.unsqueeze(1)
    down, right = place // width - kept // width, place % width - kept % width
    # One whole number holds distance and position, so that ties are broken alike on every device.
    rank = (down * down + right * right) * (positions + 1) + kept
    return rank.masked_fill(kept == positions, torch.iinfo(rank.dtype).max).argmin(2)
