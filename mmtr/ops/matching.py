"""Similarity between token sets, nearest matches, and merging into them."""
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
        return -torch.cdist(a, b, p=2. if metric == 'euclidean' else 1.)


def merge_mean(x: Tensor, others: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """Replace each token by the mean of itself and the others that go into it.

    Args:
        x: (B, M, C).
        others: (B, N, C).
        into: (B, N) which token of ``x`` each of ``others`` goes into.

    Returns:
        The merged tokens (B, M, C), and how many tokens each is the mean of (B, M), float32.
    """
    count = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
    count = count.scatter_add(1, into, count.new_ones(into.shape))
    total = x.scatter_add(1, into.unsqueeze(-1).expand_as(others), others)
    return total / count.unsqueeze(-1).to(x.dtype), count
