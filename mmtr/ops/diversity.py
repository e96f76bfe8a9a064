"""How alike vectors, or the attention maps of a layer, are."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention_weights


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """Mean cosine similarity of all pairs of different vectors: (..., N, C) -> (...), float64, NaN for N < 2.

    O(N C): the square of the sum of unit vectors is their own squares and every pair twice. A vector of zeros
    is like no other one.
    """
    return _mean_of_pairs(*_sums(x), x.shape[-2])


def attention_similarity(q: Tensor, k: Tensor, bias: Optional[Tensor] = None, chunk: int = 256) -> Tensor:
    """``mean_pairwise_cosine`` of the attention maps that the queries of a head have: (B, heads), float64.

    It is exact, and holds the maps of ``chunk`` queries at a time.

    Args:
        q: (B, heads, N, D).
        k: (B, heads, M, D).
        bias: Added to the logits, broadcast to (B, heads, N, M); None: nothing.
    """
    total = squares = 0.0
    for start in range(0, q.shape[2], chunk):
        rows = slice(start, start + chunk)
        part = bias if bias is None or bias.shape[-2] == 1 else bias[..., rows, :]
        of_vectors, of_squares = _sums(attention_weights(q[:, :, rows].float(), k.float(), part))
        total, squares = total + of_vectors, squares + of_squares
    return _mean_of_pairs(total, squares, q.shape[2])


def _sums(x):
    """The sum of the unit vectors (..., C), and of their squares (...)."""
    unit = F.normalize(x.double(), dim=-1)  # near a similarity of 1, float32 shows its own rounding
    return unit.sum(-2), unit.square().sum((-2, -1))


def _mean_of_pairs(total, squares, n):
    if n < 2:
        return torch.full_like(squares, torch.nan)
    return (total.square().sum(-1) - squares) / (n * (n - 1))
