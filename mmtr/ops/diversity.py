"""Similarity of tokens to each other, and of the attention maps of a layer."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention_weights


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """Compute the mean cosine similarity of all pairs of vectors: (..., N, C) -> (...), float64, NaN for N < 2.

    It costs O(N C): the squared norm of the sum of unit vectors is the sum of their squared norms plus twice the sum
    over pairs. A zero vector has similarity 0 to every other one.
    """
    return _mean_of_pairs(*_sums(x), x.shape[-2])


def attention_similarity(q: Tensor, k: Tensor, bias: Optional[Tensor] = None, chunk: int = 256) -> Tensor:
    """Compute ``mean_pairwise_cosine`` of the attention maps of a head's queries: (B, heads), float64.

    Args:
        q: (B, heads, N, D) queries.
        k: (B, heads, M, D) keys.
        bias: Added to the logits, broadcast to (B, heads, N, M); None: nothing is added.
        chunk: Number of queries whose attention maps are in memory at a time; the result does not depend on it.
    """
    total = squares = 0.0
    for start in range(0, q.shape[2], chunk):
        rows = slice(start, start + chunk)
        part = bias if bias is None or bias.shape[-2] == 1 else bias[..., rows, :]
        of_vectors, of_squares = _sums(attention_weights(q[:, :, rows].float(), k.float(), part))
        total, squares = total + of_vectors, squares + of_squares
    return _mean_of_pairs(total, squares, q.shape[2])


def _sums(x):
    """Return the sum of the unit vectors (..., C), and the sum of their squared norms (...)."""
    unit = F.normalize(x.double(), dim=-1)  # near a similarity of 1, float32 shows its own rounding
    return unit.sum(-2), unit.square().sum((-2, -1))


def _mean_of_pairs(total, squares, n):
    if n < 2:
        return torch.full_like(squares, torch.nan)
    return (total.square().sum(-1) - squares) / (n * (n - 1))
