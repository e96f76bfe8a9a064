"""Merging of neighbours along the rows and columns of a token grid, so that a grid is left (CubistMerge, Sec. 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .bipartite import Matching, matching_of, merge
from .matching import gather_tokens
from .query_scores import highest

METRICS = ('cosine', 'euclidean')
MERGES = ('max', 'average')


def match_neighbours(x: Tensor, r: int, metric: str) -> Matching:
    """Match the tokens in odd places of each line to the more similar neighbour; the r best matches merge.

    Computed in float32, without gradient. Of equal neighbours it is the left one, of equal matches the first.

    Args:
        x: (L, n, C) tokens of each line.
        r: Number of tokens that merge in each line, 1 to n // 2.
        metric: One of ``METRICS``; distances are negated.
    """
    n, x = int(x.shape[1]), x.detach().float()
    if metric == 'cosine':
        x = F.normalize(x, dim=-1)
        alike = (x[:, :-1] * x[:, 1:]).sum(-1)
    else:
        alike = -(x[:, :-1] - x[:, 1:]).norm(dim=-1)
    # The last token may have no neighbour on the right.
    left, right = alike[:, ::2], F.pad(alike[:, 1::2], (0, 1 - n % 2), value=-torch.inf)
    best = highest(torch.maximum(left, right), r)
    source = 2 * best + 1
    target = torch.where((right > left).gather(1, best), source + 1, source - 1)
    return matching_of(source, target, n)


def merge_largest(x: Tensor, matching: Matching) -> Tensor:
    """Merge neighbours into the value of largest magnitude, in each channel; of a and -a it is the positive one.

    Args:
        x: (L, n, C) tokens of each line.
        matching: Result of ``match_neighbours``.

    Returns:
        (L, n - r, C).
    """
    kept, slots = matching.kept, matching.slots()
    own = torch.arange(kept.shape[1], device=kept.device)
    high = low = gather_tokens(x, kept)
    for step in (-1, 1):
        # A neighbour that merges elsewhere, or not, is replaced by the token itself, which changes no maximum.
        side = (kept + step).clamp(0, int(x.shape[1]) - 1)
        member = gather_tokens(x, torch.where(slots.gather(1, side) == own, side, kept))
        high, low = torch.maximum(high, member), torch.minimum(low, member)
    return torch.where(high >= -low, high, low)


def merge_rows_columns(
    x: Tensor, grid: tuple[int, int], r: tuple[int, int], metric: str, how: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge neighbours in each row, then in each column of what is left, so that a smaller grid is left.

    Args:
        x: (B, H * W, C) tokens in raster order.
        grid: (H, W) of the tokens.
        r: Number of rows and of columns that go, at most half of each: so many tokens merge in each column, and row.
        metric: One of ``METRICS``.
        how: One of ``MERGES``: ``max``, in each channel the value of largest magnitude of the tokens that merge;
            ``average``, their mean, weighted by the number of tokens that each stands for.

    Returns:
        The merged tokens (B, M, C), M = (H - r_h) * (W - r_w), in raster order of the smaller grid; the number of
        tokens that each stands for (B, M), float32; the position that each had (B, M); and the index among the M of
        the token that stands for each of the H * W.
    """
    x = x.unflatten(1, grid)
    size = torch.ones(x.shape[:3], dtype=torch.float32, device=x.device)
    index = torch.arange(grid[0] * grid[1], device=x.device).view(grid).expand(size.shape)
    *merged, column = _merge_lines((x, size, index), r[1], metric, how)
    transposed = [each.transpose(1, 2) for each in merged]
    x, size, index, row = (each.transpose(1, 2) for each in _merge_lines(transposed, r[0], metric, how))
    # A token went to a column of its row, and then with that one to a row of its column.
    slots = row.gather(2, column) * x.shape[2] + column
    return x.flatten(1, 2), size.flatten(1), index.flatten(1), slots.flatten(1)


def _merge_lines(grids, r, metric, how):
    """Merge r tokens of each line of tokens (B, L, n, C), their sizes and positions (B, L, n), and add the slots."""
    x, size, index = grids
    if r == 0:
        return x, size, index, torch.arange(x.shape[2], device=x.device).expand(size.shape)
    lines, x, size, index = x.shape[:2], x.flatten(0, 1), size.flatten(0, 1), index.flatten(0, 1)
    matching = match_neighbours(x, r, metric)
    if how == 'average':
        x, size = merge(x, matching, size)
    else:
        x = merge_largest(x, matching)
        size = size.gather(1, matching.kept).scatter_add(1, matching.into, size.gather(1, matching.source))
    return tuple(each.unflatten(0, lines) for each in (x, size, index.gather(1, matching.kept), matching.slots()))
