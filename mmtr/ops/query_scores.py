"""Token scores from learned queries, and ranking by them in the whole image or within regions (Token Cropr)."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


def query_scores(x: Tensor, scorer: Tensor, pre_norm: bool = False) -> Tensor:
    """Score each token by the sum of its attention logits over heads and queries.

    Since sum_m q_m k_n = (sum_m q_m) k_n, the queries are summed first: the cost is O(N C) for any number of queries.
    Computed in float32, since in half precision distinct scores tie; without gradient.

    Args:
        x: (B, N, C) tokens.
        scorer: (C,) sum of the queries.
        pre_norm: Whether tokens are normalised first, without weight and bias: the weight of the norm is part of
            ``scorer``, and its bias adds the same to all scores.

    Returns:
        Scores (B, N), float32.
    """
    x, scorer = x.detach().float(), scorer.detach().float()
    with torch.autocast(x.device.type, enabled=False):
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) if pre_norm else x
        return (x @ scorer.unsqueeze(-1)).squeeze(-1)


def highest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores, ascending: (B, N) -> (B, count); of ties, the first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def within_regions(scores: Tensor, index: Tensor, grid: tuple[int, int], region: int) -> Tensor:
    """Turn scores into ranks by which each region of the patch grid loses the same share of its patches.

    Tokens are ranked by the share of their region's patches with a higher score; ties are broken by the score.

    Args:
        scores: (B, N) score of each token.
        index: (B, N) raster position of each token.
        grid: (H, W) of the patch grid.
        region: Side of a region, in patches; regions at the right and lower edge may be smaller.

    Returns:
        New scores (B, N), all different.
    """
    rows, columns = (-(-n // region) for n in grid)
    row, column = index // grid[1], index % grid[1]
    place = row * columns * region + column  # raster position in the grid padded to whole regions
    canvas = scores.new_full((scores.shape[0], rows * region * columns * region), -torch.inf)
    canvas = canvas.scatter(1, place, scores).view(-1, rows, region, columns, region).transpose(2, 3).flatten(3)
    higher = canvas.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
    higher = higher.unflatten(3, (region, region)).transpose(2, 3).flatten(1).gather(1, place)
    sides = [(n - at // region * region).clamp(max=region) for n, at in zip(grid, (row, column))]
    share = (higher + 0.5) / (sides[0] * sides[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, share.gather(1, order).argsort(dim=1, stable=True))
    return -order.argsort(dim=1).to(scores.dtype)
