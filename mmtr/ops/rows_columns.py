"""Rows and columns of the patch grid: scoring, grouping, injecting, ejecting (Token Adapter, Sec. 3.2)."""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropping import pseudo_random
from .matching import gather_tokens, merge_mean, similarity

SCORES = ('max', 'sum', 'range', 'attn', 'random', 'alternating')
MERGES = ('average', 'keep', 'max_pool', 'avg_pool', 'bilinear')
REFERENCES = ('reduced_merged', 'reduced', 'representative_merged', 'representative')

_REDUCE = dict(
    max=lambda t, dim: t.amax(dim), sum=lambda t, dim: t.sum(dim), range=lambda t, dim: t.amax(dim) - t.amin(dim)
)
_RESIZE = dict(
    max_pool=F.adaptive_max_pool2d,
    avg_pool=F.adaptive_avg_pool2d,
    bilinear=lambda t, size: F.interpolate(t, size, mode='bilinear', align_corners=False),
)


def row_column_scores(
    x: Tensor, score: str, normal: tuple[int, int], attn: Optional[Tensor] = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Score the importance of each row and column (Sec. 3.2, Tab. 4a).

    Args:
        x: (B, H, W, C) tokens.
        score: One of ``SCORES``. ``max``, ``sum`` and ``range`` reduce the channels, then the row or column; ``attn``
            takes the maximum of ``attn`` over the row or column; ``random`` depends on the position alone, and is the
            same for every image.
        normal: Number of rows and of columns that will be normal; ``alternating`` spaces them evenly.
        attn: (B, H, W) attention that each token receives, for ``score='attn'``.
        seed: Seed of ``score='random'``.

    Returns:
        Scores of the rows (B, H) and of the columns (B, W), float32.
    """
    batch, height, width, _ = x.shape
    if score in ('random', 'alternating'):
        return tuple(
            (pseudo_random(n, seed + axis, x.device) if score == 'random' else _alternating(n, count, x.device)).expand(
                batch, n
            )
            for axis, (n, count) in enumerate(zip((height, width), normal))
        )
    reduce = _REDUCE.get(score, _REDUCE['max'])
    tokens = attn if score == 'attn' else reduce(x.detach().float(), -1)
    return reduce(tokens, 2), reduce(tokens, 1)


def _alternating(n: int, count: int, device) -> Tensor:
    step = torch.arange(n + 1, device=device) * count // n
    return (step[1:] == step[:-1]).float()


def _true_positions(mask: Tensor, count: int) -> Tensor:
    """Return the positions of the ``count`` True values in each row of ``mask`` (B, N), ascending: (B, count)."""
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def _outer(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Return the raster positions of all pairs of ``rows`` (B, R) and ``columns`` (B, S): (B, R * S)."""
    return (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)


@dataclass(frozen=True)
class Groups:
    """The normal, representative and unique tokens of an (H, W) grid (Sec. 3.2); the last two are kept.

    Args:
        kept: (B, H' * W') raster position of each kept token, ascending.
        normal: (B, H * W - H' * W') raster positions of the normal tokens.
        representative: (B, N_p) indices in ``kept`` of the representatives.
        grid: (H, W) of all tokens.
        reduced_grid: (H', W') of the kept tokens.
    """

    kept: Tensor
    normal: Tensor
    representative: Tensor
    grid: tuple[int, int]
    reduced_grid: tuple[int, int]

    def labels(self) -> Tensor:
        """The group of each token (B, H * W): 0 normal, 1 representative, 2 unique."""
        kept = torch.full_like(self.kept, 2).scatter(1, self.representative, 1)
        return self.kept.new_zeros(self.kept.shape[0], self.grid[0] * self.grid[1]).scatter(1, self.kept, kept)

    def slots(self, match: Tensor) -> Tensor:
        """Index in ``kept`` of the token that represents each token: (B, N_n), of normal ones, -> (B, H * W)."""
        own = torch.arange(self.kept.shape[1], device=match.device).expand_as(self.kept)
        slots = self.kept.new_zeros(self.kept.shape[0], self.grid[0] * self.grid[1])
        return slots.scatter(1, self.kept, own).scatter(1, self.normal, match)


def group_rows_columns(scores: tuple[Tensor, Tensor], normal: tuple[int, int], unique: tuple[int, int]) -> Groups:
    """Group tokens by the scores of row and column: the lowest are normal, the highest unique, others representative.

    Args:
        scores: (B, H) scores of rows and (B, W) of columns; ties are ranked by position.
        normal: Number of normal rows and of normal columns.
        unique: Number of unique rows and of unique columns.
    """
    kept, dropped, representative, sizes = [], [], [], []
    for score, n_normal, n_unique in zip(scores, normal, unique):
        n = int(score.shape[1])  # a tensor inside a jit trace
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        is_kept = rank >= n_normal
        axis_kept = _true_positions(is_kept, n - n_normal)
        kept.append(axis_kept)
        dropped.append(_true_positions(~is_kept, n_normal))
        is_unique = rank.gather(1, axis_kept) >= n - n_unique
        representative.append(_true_positions(~is_unique, n - n_normal - n_unique))
        sizes.append(n)
    height, width = sizes
    all_columns = torch.arange(width, device=kept[0].device).expand(kept[0].shape[0], width)
    reduced_grid = (height - normal[0], width - normal[1])
    return Groups(
        kept=_outer(kept[0], kept[1], width),
        normal=torch.cat([_outer(dropped[0], all_columns, width), _outer(kept[0], dropped[1], width)], 1),
        representative=_outer(representative[0], representative[1], reduced_grid[1]),
        grid=(height, width),
        reduced_grid=reduced_grid,
    )


def match_normal(x: Tensor, groups: Groups, metric: str) -> Tensor:
    """Match each normal token to the most similar representative; return its index in ``groups.kept``: (B, N_n).

    Args:
        x: (B, H * W, C) tokens.
        groups: Groups of the tokens.
        metric: One of ``mmtr.ops.matching.METRICS``.
    """
    representatives = gather_tokens(x, groups.kept.gather(1, groups.representative))
    nearest = similarity(gather_tokens(x, groups.normal), representatives, metric).argmax(2)
    return groups.representative.gather(1, nearest)


def inject(x: Tensor, groups: Groups, merge: str, match: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Reduce tokens to the kept rows and columns: the Token Injector.

    Args:
        x: (B, H * W, C) tokens.
        groups: Groups of the tokens.
        merge: One of ``MERGES`` (Tab. 4d): ``average`` of a representative and all normal tokens that match it;
            ``keep`` drops the normal tokens; ``max_pool``, ``avg_pool`` and ``bilinear`` resize the grid.
        match: (B, N_n) result of ``match_normal``, for ``average``.

    Returns:
        The reduced tokens (B, H' * W', C), and the number of tokens that each is the mean of (B, H' * W').
    """
    kept = gather_tokens(x, groups.kept)
    if merge == 'average':
        return merge_mean(kept, gather_tokens(x, groups.normal), match)
    if merge != 'keep':
        grid = x.transpose(1, 2).unflatten(2, groups.grid)
        kept = _RESIZE[merge](grid, groups.reduced_grid).flatten(2).transpose(1, 2)
    return kept, torch.ones(kept.shape[:2], dtype=torch.float32, device=x.device)


@dataclass(frozen=True)
class Assignment:
    """The reduced tokens that each original token is restored from: one, or a weighted sum of several.

    Args:
        nearest: (B, N) index of the one reduced token; None: there are ``weights``.
        weights: (B, N, M) weight of each reduced token; None: there is ``nearest``.
    """

    nearest: Optional[Tensor] = None
    weights: Optional[Tensor] = None

    def slots(self) -> Tensor:
        """Index of the reduced token with the largest weight in each original token: (B, N)."""
        return self.weights.argmax(2) if self.nearest is None else self.nearest


def assign(
    x: Tensor, merged: Tensor, groups: Groups, metric: str, reference: str, tau: Optional[float] = None
) -> Assignment:
    """Match original tokens to reduced ones for the Token Ejector, before layers change these (Sec. 3.2, Tab. 4c, 4e).

    Args:
        x: (B, N, C) tokens before the injector.
        merged: (B, M, C) reduced tokens that it returned.
        groups: Groups of the tokens.
        metric: One of ``mmtr.ops.matching.METRICS``.
        reference: Tokens that ``x`` is compared with, one of ``REFERENCES``.
        tau: None: a token is restored from the most similar reduced token (mode ``max``). A number: from the mean of
            that one and all whose similarity is at least ``tau`` (mode ``m-threshold``).
    """
    compared = gather_tokens(x, groups.kept) if reference in ('reduced', 'representative') else merged
    representative_only = reference.startswith('representative')
    if representative_only:
        compared = gather_tokens(compared, groups.representative)
    alike = similarity(x, compared, metric)
    nearest = alike.argmax(2)
    if tau is None:
        return Assignment(nearest=groups.representative.gather(1, nearest) if representative_only else nearest)
    # 1 instead of True, which a jit trace cannot scatter.
    chosen = (alike >= tau).scatter(2, nearest.unsqueeze(2), 1).to(x.dtype)
    weights = chosen / chosen.sum(2, keepdim=True)
    if representative_only:
        index = groups.representative.unsqueeze(1).expand_as(weights)
        weights = weights.new_zeros(*x.shape[:2], merged.shape[1]).scatter(2, index, weights)
    return Assignment(weights=weights)


def eject(refined: Tensor, assignment: Assignment) -> Tensor:
    """Restore each token from the reduced ones that it is assigned to, as the Token Ejector: (B, M, C) -> (B, N, C)."""
    if assignment.weights is None:
        return gather_tokens(refined, assignment.nearest)
    # Autocast would round the residual stream to half precision here.
    with torch.autocast(refined.device.type, enabled=False):
        return assignment.weights.to(refined.dtype) @ refined
