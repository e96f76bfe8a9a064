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
    """Importance of each row and column (Sec. 3.2, Tab. 4a).

    Args:
        x: (B, H, W, C).
        score: One of ``SCORES``. ``max``, ``sum`` and ``range`` reduce the channels, then the row or
            column, in the same way; ``attn`` takes the maximum of ``attn`` over the row or column.
        normal: How many rows and columns will be normal; ``alternating`` spaces them evenly.
        attn: (B, H, W) attention that each token receives, for ``score='attn'``.
        seed: Of ``score='random'``, the same for every image, whatever its batch.

    Returns:
        (B, H) and (B, W), float32.
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
    """Positions of the ``count`` True values in each row of ``mask`` (B, N), ascending: (B, count)."""
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, :count]


def _outer(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Raster positions of all pairs of ``rows`` (B, R) and ``columns`` (B, S): (B, R * S)."""
    return (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)


@dataclass(frozen=True)
class Groups:
    """Which tokens of an (H, W) grid are normal, representative and unique (Sec. 3.2).

    Args:
        kept: (B, H' * W') raster position of each kept token, ascending.
        normal: (B, H * W - H' * W') raster positions of the normal tokens.
        representative: (B, N_p) which of the kept tokens are representatives.
        grid: (H, W).
        reduced_grid: (H', W').
    """

    kept: Tensor
    normal: Tensor
    representative: Tensor
    grid: tuple[int, int]
    reduced_grid: tuple[int, int]

    def labels(self) -> Tensor:
        """0 for normal tokens, 1 for representative, 2 for unique ones: (B, H * W)."""
        kept = torch.full_like(self.kept, 2).scatter(1, self.representative, 1)
        return self.kept.new_zeros(self.kept.shape[0], self.grid[0] * self.grid[1]).scatter(1, self.kept, kept)

    def slots(self, match: Tensor) -> Tensor:
        """Which kept token stands for each token, given that of each normal one (B, N_n): (B, H * W)."""
        own = torch.arange(self.kept.shape[1], device=match.device).expand_as(self.kept)
        slots = self.kept.new_zeros(self.kept.shape[0], self.grid[0] * self.grid[1])
        return slots.scatter(1, self.kept, own).scatter(1, self.normal, match)


def group_rows_columns(scores: tuple[Tensor, Tensor], normal: tuple[int, int], unique: tuple[int, int]) -> Groups:
    """Group tokens by the scores of row and column: lowest normal, highest unique, else representative.

    Args:
        scores: (B, H) and (B, W). Equal scores are taken in order of position.
        normal, unique: How many rows and columns of each kind.
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
    """The kept token, a representative, that each normal token is most similar to: (B, N_n).

    Args:
        x: (B, H * W, C).
    """
    representatives = gather_tokens(x, groups.kept.gather(1, groups.representative))
    nearest = similarity(gather_tokens(x, groups.normal), representatives, metric).argmax(2)
    return groups.representative.gather(1, nearest)


def inject(x: Tensor, groups: Groups, merge: str, match: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Token Injector: (B, H * W, C) -> (B, H' * W', C), and how many tokens each is the mean of (B, H' * W').

    Args:
        merge: ``average`` of a representative and all normal tokens that match it; ``keep`` drops
            the normal tokens; ``max_pool``, ``avg_pool`` and ``bilinear`` resize the grid (Tab. 4d).
        match: (B, N_n) from ``match_normal``, for ``average``.
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
    """Which reduced tokens each original token is restored from.

    Args:
        nearest: (B, N) the one, or None.
        weights: (B, N, M) the share of each reduced token, or None.
    """

    nearest: Optional[Tensor] = None
    weights: Optional[Tensor] = None

    def slots(self) -> Tensor:
        """The reduced token with the largest share in each original one: (B, N)."""
        return self.weights.argmax(2) if self.nearest is None else self.nearest


def assign(
    x: Tensor, merged: Tensor, groups: Groups, metric: str, reference: str, tau: Optional[float] = None
) -> Assignment:
    """Token Ejector's matching, made before the reduced tokens are refined (Sec. 3.2, Tab. 4c and 4e).

    Args:
        x: (B, N, C) tokens before the injector.
        merged: (B, M, C) tokens that it made.
        reference: What ``x`` is compared with, one of ``REFERENCES``.
        tau: None: the most similar only (mode ``max``). Else also all that are at least this
            similar, in equal shares (mode ``m-threshold``).
    """
    compared = gather_tokens(x, groups.kept) if reference in ('reduced', 'representative') else merged
    representative_only = reference.startswith('representative')
    if representative_only:
        compared = gather_tokens(compared, groups.representative)
    alike = similarity(x, compared, metric)
    nearest = alike.argmax(2)
    if tau is None:
        return Assignment(nearest=groups.representative.gather(1, nearest) if representative_only else nearest)
    # The value 1, since a jit trace knows no scatter of True.
    chosen = (alike >= tau).scatter(2, nearest.unsqueeze(2), 1).to(x.dtype)
    weights = chosen / chosen.sum(2, keepdim=True)
    if representative_only:
        index = groups.representative.unsqueeze(1).expand_as(weights)
        weights = weights.new_zeros(*x.shape[:2], merged.shape[1]).scatter(2, index, weights)
    return Assignment(weights=weights)


def eject(refined: Tensor, assignment: Assignment) -> Tensor:
    """Token Ejector: (B, M, C) -> (B, N, C), each token from the reduced ones that it is assigned to."""
    if assignment.weights is None:
        return gather_tokens(refined, assignment.nearest)
    # Autocast would round the residual stream to half precision here.
    with torch.autocast(refined.device.type, enabled=False):
        return assignment.weights.to(refined.dtype) @ refined
