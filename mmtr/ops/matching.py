"""Similarity between token sets, nearest matches, and merging into them."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

METRICS = ('cosine', 'dot', 'euclidean', 'manhattan')


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Gather the tokens of ``x`` (B, N, C) at ``index`` (B, M): (B, M, C)."""
    # Whole tokens are copied: on a CPU several times as fast as torch.gather, which takes an index for each channel.
    # ``len`` would fix the batch size of exported files.
    rows = index + torch.arange(x.shape[0], device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def similarity(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """Compute the similarity of each token of ``a`` to each token of ``b``; larger is more similar.

    Computed in float32 also under autocast, since in half precision distinct tokens tie; without gradient.

    Args:
        a: (B, N, C) tokens.
        b: (B, M, C) tokens.
        metric: One of ``METRICS``; distances are negated.

    Returns:
        (B, N, M), float32.
    """
    a, b = a.detach().float(), b.detach().float()
    with torch.autocast(a.device.type, enabled=False):
        if metric == 'cosine':
            return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2)
        if metric == 'dot':
            return a @ b.transpose(1, 2)
        return -torch.cdist(a, b, p=2.0 if metric == 'euclidean' else 1.0)


def merge_mean(
    x: Tensor, others: Tensor, into: Tensor, sizes: Optional[tuple[Tensor, Tensor]] = None
) -> tuple[Tensor, Tensor]:
    """Merge tokens into others: replace each of these by the mean of itself and those that merge into it.

    Args:
        x: (B, M, C) tokens that stay.
        others: (B, N, C) tokens that merge into them.
        into: (B, N) index in ``x`` of the token that each of ``others`` merges into.
        sizes: (B, M) and (B, N), float32: number of patches that each token represents, its weight in the mean;
            None: one each.

    Returns:
        The merged tokens (B, M, C), and the number of patches that each represents (B, M), float32.
    """
    if sizes is None:
        count = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
        count = count.scatter_add(1, into, count.new_ones(into.shape))
        total = x.scatter_add(1, into.unsqueeze(-1).expand_as(others), others)
        return total / count.unsqueeze(-1).to(x.dtype), count
    size, size_others = sizes
    count = size.scatter_add(1, into, size_others)
    # Sums of many tokens need float32.
    total = (x * size.unsqueeze(-1)).scatter_add(
        1, into.unsqueeze(-1).expand_as(others), others * size_others.unsqueeze(-1)
    )
    return (total / count.unsqueeze(-1)).to(x.dtype), count


def merge_into(
    x: Tensor, into: Tensor, size: Optional[Tensor] = None, order: Optional[Tensor] = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge each token into its target; the number of tokens left may differ between images.

    Args:
        x: (B, N, C) tokens.
        into: (B, N) position of the target of each token, which must be its own target; a token whose target is its
            own position stays.
        size: (B, N) number of patches that each token represents, its weight in the mean, 0 for padding; None: one
            each.
        order: (B, N) all positions, in the order that the tokens that stay shall have; None: ascending.

    Returns:
        The merged tokens (B, M, C), padded with zeros to the M tokens of the image with most; the number of patches
        that each represents (B, M), float32, 0 for padding; the position that each had (B, M); and the index among
        the M of the token that represents each of the N (B, N).
    """
    position = torch.arange(x.shape[1], device=x.device)
    size = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device) if size is None else size
    stays = (into == position) & (size > 0)
    order = position.expand_as(into) if order is None else order
    own = into.scatter(1, order, stays.gather(1, order).cumsum(1) - 1)
    slots = own.gather(1, into)
    longest = max(stays.sum(1).tolist(), default=0)  # 0 of an empty batch
    count = size.new_zeros(x.shape[0], longest).scatter_add(1, slots, size)
    weighted = x * size.unsqueeze(-1)
    total = weighted.new_zeros(x.shape[0], longest, x.shape[2]).scatter_add(
        1, slots.unsqueeze(-1).expand_as(weighted), weighted
    )
    kept = slots.new_zeros(x.shape[0], longest).scatter_add(1, slots, position * stays)
    return (total / count.unsqueeze(-1).clamp(min=1)).to(x.dtype), count, kept, slots
