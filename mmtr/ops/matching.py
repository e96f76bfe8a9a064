"""Similarity between token sets, nearest matches, and merging into them."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

METRICS = ('cosine', 'dot', 'euclidean', 'manhattan')


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x`` (B, N, C) at ``index`` (B, M): (B, M, C)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def similarity(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """How similar each token of ``a`` is to each of ``b``, larger is more similar.

    Computed in float32 also under autocast, since in half precision distinct tokens tie. It
    carries no gradient: it is used to decide, not to learn.

    Args:
        a: (B, N, C).
        b: (B, M, C).
        metric: One of ``METRICS``; the distances are negated.

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
    """Replace each token by the mean of itself and the others that go into it.

    Args:
        x: (B, M, C).
        others: (B, N, C).
        into: (B, N) which token of ``x`` each of ``others`` goes into.
        sizes: (B, M) and (B, N), float32: how many tokens each one stands for, its weight in the
            mean; None: one each.

    Returns:
        The merged tokens (B, M, C), and how many tokens each stands for (B, M), float32.
    """
    if sizes is None:
        count = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
        count = count.scatter_add(1, into, count.new_ones(into.shape))
        total = x.scatter_add(1, into.unsqueeze(-1).expand_as(others), others)
        return total / count.unsqueeze(-1).to(x.dtype), count
    size, size_others = sizes
    count = size.scatter_add(1, into, size_others)
    # float32, since half precision holds no sum of many tokens.
    total = (x * size.unsqueeze(-1)).scatter_add(
        1, into.unsqueeze(-1).expand_as(others), others * size_others.unsqueeze(-1)
    )
    return (total / count.unsqueeze(-1)).to(x.dtype), count


def merge_into(
    x: Tensor, into: Tensor, size: Optional[Tensor] = None, order: Optional[Tensor] = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge each token into the one it points at; what is left may differ from image to image.

    Args:
        x: (B, N, C).
        into: (B, N) position of the token that each one merges into, which must stay itself; its
            own position: it stays.
        size: (B, N) how many tokens each one stands for, its weight in the mean; 0: padding; None: one each.
        order: (B, N) positions in the order in which those that stay shall be; None: by position.

    Returns:
        The merged tokens (B, M, C), in that order, with M as the image with most of them needs and zeros
        after those of the others; how many tokens each stands for (B, M), float32, 0 for padding; the
        position of each before (B, M); and which of them stands for each of the N (B, N).
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
