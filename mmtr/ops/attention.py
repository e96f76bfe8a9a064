"""Scaled dot-product attention: the one place that picks a backend."""

import importlib.util
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.errors import UserError

BACKENDS = ('auto', 'sdpa', 'xformers', 'math')


def check_backend(backend: str) -> str:
    """Return ``backend`` if it can run on this machine.

    Raises:
        UserError: It is not one of ``BACKENDS``, or xformers is missing or has no GPU to run on.
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
    """softmax(q k^T / sqrt(D) + bias): (..., N, D) and (..., M, D) -> (..., N, M)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, backend: str = 'auto', dropout: float = 0.0, bias: Optional[Tensor] = None
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v.

    Args:
        q: (B, heads, N, D).
        k, v: (B, heads, M, D).
        backend: ``'sdpa'`` is torch's fused attention, which picks flash or memory-efficient
            kernels itself; ``'auto'`` is the same, xformers being used only where it is asked for;
            ``'math'`` builds the attention matrix.
        dropout: Probability to drop an attention weight.
        bias: (B, 1, 1, M) or another shape that broadcasts to (B, heads, N, M); -inf hides a key.

    Returns:
        (B, heads, N, D).
    """
    if bias is not None:
        bias = bias.to(q.dtype)
    if backend == 'math':
        return F.dropout(attention_weights(q, k, bias), dropout, training=dropout > 0) @ v
    if backend == 'xformers':
        from xformers.ops import memory_efficient_attention

        if bias is not None:
            # Its kernels read 8 keys at once, and take strides of 0 for what is broadcast.
            bias = F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]
            bias = bias.expand(*q.shape[:3], k.shape[2])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def received_attention(q: Tensor, k: Tensor) -> Tensor:
    """How much attention each key receives, mean over heads and queries: (B, M), float32.

    Heads are taken one at a time, so that memory stays at one (B, N, M) matrix.
    """
    heads = q.shape[1]
    return sum(attention_weights(q[:, h].float(), k[:, h].float()).mean(1) for h in range(heads)) / heads


def class_attention(q: Tensor, k: Tensor) -> Tensor:
    """The attention of the first token to every token, mean over heads: (B, N), float32, without gradient.

    Only that row of the attention matrix is computed, in float32 also under autocast.

    Args:
        q, k: (B, heads, N, D).
    """
    q, k = q[:, :, :1].detach().float(), k.detach().float()
    with torch.autocast(q.device.type, enabled=False):
        return attention_weights(q, k).mean(1).squeeze(1)
