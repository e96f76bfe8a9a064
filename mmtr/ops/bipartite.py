"""Bipartite matching: every second token may merge into the most similar of the others (ToMe, Sec. 3)."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .matching import gather_tokens, merge_mean, similarity


def best_edges(metric: Tensor, first: int = 0, valid: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """The token that each one of every second is most similar to, among those between, by cosine.

    Args:
        metric: (B, N, C) with N >= 2.
        first: The position of the first that is matched, 0 or 1: S = ceil((N - first) / 2) are.
        valid: (B, N) False where there is no token to be matched with; None: nowhere.

    Returns:
        The similarity (B, S), float32, and which of those between (B, S).
    """
    alike = similarity(metric[:, first::2], metric[:, 1 - first :: 2], 'cosine')
    if valid is not None:
        alike = alike.masked_fill(~valid[:, None, 1 - first :: 2], -torch.inf)
    return alike.max(2)


@dataclass(frozen=True)
class Matching:
    """Which r of N tokens merge into which of the others.

    Args:
        kept: (B, N - r) positions of the tokens that stay: those that could merge, then those merged into.
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


def soft_matching(metric: Tensor, r: int, num_prefix: int = 0) -> Matching:
    """Bipartite soft matching (ToMe, Sec. 3): the r tokens in even places with the most similar odd one join it.

    Places are those of the whole sequence, prefix tokens first, as in the released code. So with a class token the
    odd patches join the even ones. What stays of them keeps its order; without a prefix it is in that of its
    similarity, the largest first, which decides the places in the next layer.

    Args:
        metric: (B, N, C) what patch tokens are compared by, with cosine similarity.
        r: 1 to N // 2.
        num_prefix: Tokens before those of ``metric``, which do not merge.
    """
    first = num_prefix % 2
    best, nearest = best_edges(metric, first)
    order = best.argsort(dim=1, descending=True, stable=True)
    merging, staying = order[:, :r], order[:, r:]
    if num_prefix > 0:
        staying = staying.sort(dim=1).values
    others = torch.arange(1 - first, int(metric.shape[1]), 2, device=metric.device)
    kept = torch.cat([first + 2 * staying, others.expand(staying.shape[0], -1)], 1)
    return Matching(kept, first + 2 * merging, nearest.gather(1, merging) + staying.shape[1])


def threshold_matching(metric: Tensor, threshold: float, valid: Tensor) -> Tensor:
    """Where each token goes if all pairs from the threshold on merge, the even one into the odd: (B, N) positions.

    Args:
        metric: (B, N, C) with N >= 2.
        threshold: Cosine similarity.
        valid: (B, N) False for padding.
    """
    best, nearest = best_edges(metric, 0, valid)
    return _targets(metric, 0, nearest, best >= threshold)


def adaptive_matching(metric: Tensor, layer: int, valid: Tensor, num_prefix: int = 0) -> Tensor:
    """As ``threshold_matching``, with the threshold that ALGM's released code takes from each image.

    Of the largest similarity of each token that can merge, it is the mean, and the standard deviation over ``layer``.

    Args:
        metric: (B, N, C) patch tokens, N >= 2.
        layer: Counted from 1.
        valid: (B, N) False for padding, which is at the end.
        num_prefix: Tokens before those of ``metric``: they do not merge, but places are of the whole sequence.
    """
    first = num_prefix % 2
    best, nearest = best_edges(metric, first, valid)
    there = valid[:, first::2]
    count = there.sum(1, keepdim=True)
    mean = best.where(there, 0).sum(1, keepdim=True) / count
    # One token has no standard deviation: NaN, and it stays.
    std = ((best - mean).where(there, 0).square().sum(1, keepdim=True) / (count - 1)).sqrt()
    return _targets(metric, first, nearest, there & (best >= mean + std / layer))


def _targets(metric, first, nearest, merges):
    own = torch.arange(metric.shape[1], device=metric.device)
    source = own[first::2].expand_as(nearest)
    return own.expand(metric.shape[:2]).scatter(1, source, torch.where(merges, 2 * nearest + 1 - first, source))


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
