"""Bipartite matching: every second token may merge into the most similar of the others (ToMe, Sec. 3)."""
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .matching import gather_tokens, merge_mean, similarity


def best_edges(metric: Tensor, valid: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """The odd token that each even one is most similar to, by cosine.

    Args:
        metric: (B, N, C) with N >= 2.
        valid: (B, N) False where there is no token to be matched with; None: nowhere.

    Returns:
        The similarity (B, ceil(N / 2)), float32, and which odd token (B, ceil(N / 2)).
    """
    alike = similarity(metric[:, ::2], metric[:, 1::2], 'cosine')
    if valid is not None:
        alike = alike.masked_fill(~valid[:, None, 1::2], -torch.inf)
    return alike.max(2)


@dataclass(frozen=True)
class Matching:
    """Which r of N tokens merge into which of the others.

    Args:
        kept: (B, N - r) positions of the tokens that stay: the even ones, then the odd ones.
        source: (B, r) positions of those that merge.
        into: (B, r) which of the kept tokens each of them merges into.
    """
    kept: Tensor
    source: Tensor
    into: Tensor

    def slots(self) -> Tensor:
        """Which kept token stands for each token: (B, N)."""
        own = torch.arange(self.kept.shape[1], device=self.kept.device).expand_as(self.kept)
        slots = self.kept.new_zeros(self.kept.shape[0], self.kept.shape[1] + self.source.shape[1])
        return slots.scatter(1, self.kept, own).scatter(1, self.source, self.into)


def soft_matching(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching (ToMe, Sec. 3): the r even tokens that have the most similar odd one join it.

    Args:
        metric: (B, N, C) what tokens are compared by, with cosine similarity.
        r: 1 to N // 2.
    """
    best, nearest = best_edges(metric)
    order = best.argsort(dim=1, descending=True, stable=True)
    merging, staying = order[:, :r], order[:, r:].sort(dim=1).values
    odd = torch.arange(1, int(metric.shape[1]), 2, device=metric.device)
    kept = torch.cat([2 * staying, odd.expand(staying.shape[0], -1)], 1)
    return Matching(kept, 2 * merging, nearest.gather(1, merging) + staying.shape[1])


def threshold_matching(metric: Tensor, threshold: float, valid: Tensor) -> Tensor:
    """Where each token goes if every pair above the threshold merges (ALGM's global step): (B, N) positions.

    Args:
        metric: (B, N, C) with N >= 2.
        threshold: Cosine similarity.
        valid: (B, N) False for padding.
    """
    best, nearest = best_edges(metric, valid)
    own = torch.arange(metric.shape[1], device=metric.device)
    even = own[::2].expand_as(nearest)
    target = torch.where(best > threshold, 2 * nearest + 1, even)
    return own.expand(metric.shape[:2]).scatter(1, even, target)


def merge(x: Tensor, matching: Matching, size: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Means of what merges: (B, N, C) -> (B, N - r, C), and how many each stands for (B, N - r).

    Args:
        size: (B, N) weights: how many tokens each one stands for; None: one each.
    """
    sizes = None if size is None else (size.gather(1, matching.kept), size.gather(1, matching.source))
    kept, others = gather_tokens(x, matching.kept), gather_tokens(x, matching.source)
    return merge_mean(kept, others, matching.into, sizes)


def unmerge(x: Tensor, matching: Matching) -> Tensor:
    """Every token from the one that stands for it: (B, N - r, C) -> (B, N, C)."""
    return gather_tokens(x, matching.slots())
