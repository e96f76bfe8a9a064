"""Bipartite matching: of two sets of tokens, those of one merge into the most similar of the other (ToMe, Sec. 3)."""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .dropping import others
from .matching import gather_tokens, merge_mean, similarity


def best_edges(metric: Tensor, first: int = 0, valid: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Match every second token to the most similar one of the tokens between them, by cosine similarity.

    Args:
        metric: (B, N, C) features that are compared, N >= 2.
        first: Position of the first token that is matched, 0 or 1; S = ceil((N - first) / 2) tokens are matched.
        valid: (B, N) False for padding, which nothing is matched to; None: there is no padding.

    Returns:
        The similarity of each match (B, S), float32, and its index among the tokens between (B, S).
    """
    alike = similarity(metric[:, first::2], metric[:, 1 - first :: 2], 'cosine')
    if valid is not None:
        alike = alike.masked_fill(~valid[:, None, 1 - first :: 2], -torch.inf)
    return alike.max(2)


@dataclass(frozen=True)
class Matching:
    """A matching by which r of N tokens merge into others.

    Args:
        kept: (B, N - r) positions of the tokens that stay: first the sources that do not merge, then the targets.
        source: (B, r) positions of the tokens that merge.
        into: (B, r) index in ``kept`` of the token that each of them merges into.
    """

    kept: Tensor
    source: Tensor
    into: Tensor

    def slots(self) -> Tensor:
        """Index in ``kept`` of the token that represents each of the N tokens: (B, N)."""
        own = torch.arange(self.kept.shape[1], device=self.kept.device).expand_as(self.kept)
        slots = self.kept.new_zeros(self.kept.shape[0], self.kept.shape[1] + self.source.shape[1])
        return slots.scatter(1, self.kept, own).scatter(1, self.source, self.into)


def matching_of(source: Tensor, target: Tensor, n: int) -> Matching:
    """Make the matching by which r of n tokens merge into others, and those that stay keep their order.

    Args:
        source: (B, r) positions of the tokens that merge.
        target: (B, r) position of the token that each of them merges into, which stays.
        n: Number of tokens.
    """
    kept = others(source, n)
    own = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    place = kept.new_zeros(kept.shape[0], n).scatter(1, kept, own)
    return Matching(kept, source, place.gather(1, target))


def energy_matching(metric: Tensor, r: int, margin: float) -> Matching:
    """Match tokens among the 2 r that most tokens are similar to; the others are protected (PiToMe, Sec. 3).

    The energy of a token is the mean of elu(similarity - ``margin``) to all tokens. Of the 2 r tokens of highest
    energy, the first, third, fifth, ... each merge into the most similar one of the second, fourth, sixth, ...

    Args:
        metric: (B, N, C) features of the tokens, compared by cosine similarity.
        r: Number of tokens that merge, 1 to N // 2.
        margin: Similarity from which on a token counts as similar.
    """
    alike = similarity(metric, metric, 'cosine')
    order = F.elu(alike - margin).mean(2).argsort(dim=1, descending=True, stable=True)
    source, target = order[:, : 2 * r : 2], order[:, 1 : 2 * r : 2]
    between = gather_tokens(alike, source).gather(2, target.unsqueeze(1).expand(-1, r, -1))
    return matching_of(source, target.gather(1, between.argmax(2)), int(metric.shape[1]))


def soft_matching(metric: Tensor, r: int, num_prefix: int = 0) -> Matching:
    """Match tokens in even places to the most similar ones in odd places; the r best matches merge (ToMe, Sec. 3).

    Places are counted in the whole sequence, prefix tokens first, as in the released code: with a class token, odd
    patches merge into even ones. Sources that do not merge keep their order; without prefix tokens they are sorted by
    similarity, the largest first, as in the released code. Their order decides the places in the next layer.

    Args:
        metric: (B, N, C) features of the patch tokens, compared by cosine similarity.
        r: Number of tokens that merge, 1 to N // 2.
        num_prefix: Number of prefix tokens, which come before those of ``metric`` and do not merge.
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
    """Match every token in an even place to the most similar one in an odd place, if their similarity is high enough.

    Args:
        metric: (B, N, C) features of the tokens, N >= 2.
        threshold: Smallest cosine similarity at which a pair merges.
        valid: (B, N) False for padding.

    Returns:
        (B, N) position of the token that each token merges into; its own position if it does not merge.
    """
    best, nearest = best_edges(metric, 0, valid)
    return _targets(metric, 0, nearest, best >= threshold)


def adaptive_matching(metric: Tensor, layer: int, valid: Tensor, num_prefix: int = 0) -> Tensor:
    """Match as ``threshold_matching``, with a threshold from the similarities of each image (ALGM's released code).

    The threshold is mean + std / ``layer`` of the largest similarity of each token that can merge.

    Args:
        metric: (B, N, C) patch tokens, N >= 2.
        layer: Layer after whose attention tokens merge, counted from 1.
        valid: (B, N) False for padding, which is at the end.
        num_prefix: Number of prefix tokens, which come before those of ``metric``; they do not merge, but places are
            counted in the whole sequence.
    """
    first = num_prefix % 2
    best, nearest = best_edges(metric, first, valid)
    there = valid[:, first::2]
    count = there.sum(1, keepdim=True)
    mean = best.where(there, 0).sum(1, keepdim=True) / count
    # The standard deviation of a single token is NaN, so that it does not merge.
    std = ((best - mean).where(there, 0).square().sum(1, keepdim=True) / (count - 1)).sqrt()
    return _targets(metric, first, nearest, there & (best >= mean + std / layer))


def _targets(metric, first, nearest, merges):
    own = torch.arange(metric.shape[1], device=metric.device)
    source = own[first::2].expand_as(nearest)
    return own.expand(metric.shape[:2]).scatter(1, source, torch.where(merges, 2 * nearest + 1 - first, source))


def merge(x: Tensor, matching: Matching, size: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
    """Merge tokens into their mean.

    Args:
        x: (B, N, C) tokens.
        matching: Matching of the N tokens.
        size: (B, N) number of patches that each token represents, its weight in the mean; None: one each.

    Returns:
        The merged tokens (B, N - r, C), and the number of patches that each represents (B, N - r).
    """
    sizes = None if size is None else (size.gather(1, matching.kept), size.gather(1, matching.source))
    kept, others = gather_tokens(x, matching.kept), gather_tokens(x, matching.source)
    return merge_mean(kept, others, matching.into, sizes)


def unmerge(x: Tensor, matching: Matching) -> Tensor:
    """Copy each merged token to all tokens that it represents: (B, N - r, C) -> (B, N, C)."""
    return gather_tokens(x, matching.slots())


def merge_patches(x: Tensor, num_prefix: int, matching: Matching) -> tuple[Tensor, Tensor]:
    """Merge the patch tokens of a sequence (B, P + N, C), see ``merge``; its first ``num_prefix`` tokens stay."""
    merged, size = merge(x[:, num_prefix:], matching)
    return torch.cat([x[:, :num_prefix], merged], 1), size


def unmerge_patches(x: Tensor, num_prefix: int, matching: Matching) -> Tensor:
    """Copy merged patch tokens back, see ``unmerge``: (B, P + N - r, C) -> (B, P + N, C)."""
    return torch.cat([x[:, :num_prefix], unmerge(x[:, num_prefix:], matching)], 1)
