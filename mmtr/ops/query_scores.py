"""Scores of tokens by learned queries, and the highest of them, in the whole image or in each part of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


def query_scores(x: Tensor, scorer: Tensor, pre_norm: bool = False) -> Tensor:
    """How much all queries together look for each token: (B, N, C) and (C,) -> (B, N), float32, no gradient.

    A token's score is the sum of its attention logits over heads and queries. Since
    sum_m q_m k_n = (sum_m q_m) k_n, the queries are summed first: O(N C), whatever their number. In half
    precision distinct scores would tie.

    Args:
        x: Tokens.
        scorer: The sum of the queries.
        pre_norm: Whether tokens are normalised first, without weight and bias: the weight belongs into
            ``scorer``, and a bias adds the same to all tokens.
    """
    x, scorer = x.detach().float(), scorer.detach().float()
    with torch.autocast(x.device.type, enabled=False):
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) if pre_norm else x
        return (x @ scorer.unsqueeze(-1)).squeeze(-1)


def highest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` slots of highest score, in ascending order: (B, N) -> (B, count); of equal ones, the first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def within_regions(scores: Tensor, index: Tensor, grid: tuple[int, int], region: int) -> Tensor:
    """Scores by which each region of the patch grid loses the same share of its patches: (B, N) -> (B, N).

    Tokens are ranked by the share of their region's patches that score higher; where that is equal, by their score.

    Args:
        index: (B, N) raster position of each token.
        grid: (H, W).
        region: Patches a side; regions at the right and lower edge may be smaller.
    """
    rows, columns = (-(-n // region) for n in grid)
    row, column = index // grid[1], index % grid[1]
    place = row * columns * region + column  # on a grid of whole regions
    canvas = scores.new_full((scores.shape[0], rows * region * columns * region), -torch.inf)
    canvas = canvas.scatter(1, place, scores).view(-1, rows, region, columns, region).transpose(2, 3).flatten(3)
    higher = canvas.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
    higher = higher.unflatten(3, (region, region)).transpose(2, 3).flatten(1).gather(1, place)
    sides = [(n - at // region * region).clamp(max=region) for n, at in zip(grid, (row, column))]
    share = (higher + 0.5) / (sides[0] * sides[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, share.gather(1, order).argsort(dim=1, stable=True))
    return -order.argsort(dim=1).to(scores.dtype)
