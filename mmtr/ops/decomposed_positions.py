"""Decomposed relative positions (MViTv2, Li et al., CVPR 2022, Sec. 4.1), as channels of queries and keys."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def with_positions(
    q: Tensor, k: Tensor, tables: tuple[Tensor, Tensor], grid: tuple[int, int], index: Optional[Tensor] = None
) -> tuple[Tensor, Tensor]:
    """Add channels to queries and keys, so that their products are the logits with relative positions.

    The logit of query i and key j, q_i k_j / sqrt(D) + q_i Rh[r_i - r_j] + q_i Rw[c_i - c_j] with q unscaled, is the
    product of [q_i / sqrt(D), q_i Rh[r_i - r], q_i Rw[c_i - c]], for all rows r and columns c, and
    [k_j, onehot(r_j), onehot(c_j)]: no bias of the size of the attention matrix is built. A token without a position
    adds and gets nothing.

    Args:
        q: (B, heads, Q, D) queries, of the first Q tokens.
        k: (B, heads, N, D) keys.
        tables: Rh (2 H - 1, D) and Rw (2 W - 1, D), for differences of -(H - 1) to H - 1, and of -(W - 1) to W - 1.
        grid: (H, W) of the positions.
        index: (B or 1, N) raster positions, H * W for a token without one; None: all of the grid, in order.

    Returns:
        Queries (B, heads, Q, E) and keys (B, heads, N, E), with E >= D + H + W a multiple of 8, as fused kernels need
        it. The logits are their products divided by sqrt(E), as ``mmtr.ops.attention`` computes them.
    """
    height, width = grid
    if index is None:
        index = torch.arange(height * width, device=q.device).unsqueeze(0)
    rows = index // width
    places = (rows, height), ((index % width).masked_fill(rows == height, width), width)
    channels = q.shape[-1]
    rest = -(channels + height + width) % 8
    seen = [_products(q, table, place[:, : q.shape[2]], n) for table, (place, n) in zip(tables, places)]
    held = [(place.unsqueeze(-1) == torch.arange(n, device=q.device)).to(k.dtype).unsqueeze(1) for place, n in places]
    total = channels + height + width + rest
    q = torch.cat([q * channels**-0.5, *seen, q.new_zeros(()).expand(*q.shape[:-1], rest)], -1) * total**0.5
    held = (each.expand(*k.shape[:3], -1) for each in (*held, k.new_zeros(1, 1, 1, rest)))
    return q, torch.cat([k, *held], -1)


def _products(q, table, place, n):
    """Multiply each query with the entries of ``table`` for the keys at places 0 to n - 1: (B, heads, N, n)."""
    differences = place.unsqueeze(-1) - torch.arange(n, device=q.device) + n - 1
    # The last row, of zeros, is for tokens without a position.
    differences = differences.masked_fill((place == n).unsqueeze(-1), 2 * n - 1)
    products = q @ F.pad(table, (0, 0, 0, 1)).to(q.dtype).t()
    return products.gather(-1, differences.unsqueeze(1).expand(*q.shape[:3], n))
