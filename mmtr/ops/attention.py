"""Scaled dot-product attention: the one place that picks a backend."""

import importlib.util
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.errors import UserError

BACKENDS = ('auto', 'sdpa', 'xformers', 'math')


def check_backend(backend: str) -> str:
    """Check that an attention backend can run on this machine, and return it.

    Raises:
        UserError: ``backend`` is not one of ``BACKENDS``, or xformers is not installed, or has no CUDA GPU.
    """
    if backend not in BACKENDS:
        raise UserError(f'attn_backend={backend!r} is unknown: choose one of {", ".join(BACKENDS)}.')
    if backend == 'xformers':
        if importlib.util.find_spec('xformers') is None:
            raise UserError(
                "attn_backend='xformers' needs the package xformers, which is not installed: "
                "pip install xformers, or use attn_backend='auto'."
            )
        if not torch.cuda.is_available():
            raise UserError(
                "attn_backend='xformers' needs a CUDA GPU, and there is none here: use attn_backend='auto'."
            )
    return backend


def attention_weights(q: Tensor, k: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute attention weights, softmax(q k^T / sqrt(D) + bias): (..., N, D) and (..., M, D) -> (..., N, M)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, backend: str = 'auto', dropout: float = 0.0, bias: Optional[Tensor] = None
) -> Tensor:
    """Compute attention, softmax(q k^T / sqrt(D) + bias) v.

    Args:
        q: (B, heads, N, D) queries.
        k: (B, heads, M, D) keys.
        v: (B, heads, M, E) values, with at most D channels.
        backend: One of ``BACKENDS``: ``'auto'`` and ``'sdpa'`` are torch's fused attention, which picks flash or
            memory-efficient kernels itself; ``'math'`` builds the attention matrix.
        dropout: Probability to drop an attention weight.
        bias: Added to the logits: (B, 1, 1, M) or another shape that broadcasts to (B, heads, N, M); -inf hides a key.

    Returns:
        (B, heads, N, E).
    """
    if v.shape[-1] < q.shape[-1]:  # fused kernels need as many
        wide = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        return attention(q, k, wide, backend, dropout, bias)[..., : v.shape[-1]]
    if bias is not None:
        bias = bias.to(q.dtype)
    if backend == 'math':
        return F.dropout(attention_weights(q, k, bias), dropout, training=dropout > 0) @ v
    if backend == 'xformers':
        from xformers.ops import memory_efficient_attention

        if bias is not None:
            # The kernels of xformers read 8 keys at once; broadcast axes may have stride 0.
            bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
            bias = bias.expand(*q.shape[:3], k.shape[2])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def received_attention(q: Tensor, k: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the attention that each key receives, as the mean over heads and queries: (B, M), float32.

    Heads are computed one at a time, so that memory stays at one (B, N, M) matrix.

    Args:
        q: (B, heads, N, D) queries.
        k: (B, heads, M, D) keys.
        bias: (B or 1, heads, N, M) added to the logits.
    """
    heads = q.shape[1]
    biases = [None] * heads if bias is None else bias.unbind(1)
    received = (attention_weights(q[:, h].float(), k[:, h].float(), biases[h]).mean(1) for h in range(heads))
    return sum(received) / heads


def class_attention(q: Tensor, k: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Compute the attention of the class token to every token, as the mean over heads: (B, N), no gradient.

    Only the first row of the attention matrix is computed, in float32 also under autocast.

    Args:
        q: (B, heads, N, D) queries; the class token is the first.
        k: (B, heads, N, D) keys.
        bias: (B or 1, heads, 1, N) added to the logits of the class token.
    """
    q, k = q[:, :, :1].detach().float(), k.detach().float()
    with torch.autocast(q.device.type, enabled=False):
        return attention_weights(q, k, None if bias is None else bias.detach()).mean(1).squeeze(1)
