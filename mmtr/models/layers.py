"""Attention and encoder layer of mmcv / mmseg with fused attention and the reducer's five moments."""
from typing import Optional

import mmcv.cnn.bricks.transformer as mmcv_transformer
import torch.utils.checkpoint as cp
from mmseg.models.backbones import vit
from torch import Tensor
from torch.nn import functional as F

from mmtr.ops.attention import attention
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens

from .twins import share, twin_of


class MultiheadAttention(mmcv_transformer.MultiheadAttention):
    """mmcv's ``MultiheadAttention``, self-attention through a fused backend; made by ``replace_with_twins``."""

    def forward(self, query, key=None, value=None, identity=None, *args, **kwargs):
        """As stock; what is not plain batch-first self-attention runs as stock."""
        extras = any(v is not None for v in (*args, *kwargs.values()))
        self_attention = all(t is None or t is query for t in (key, value))
        if extras or not self_attention or not self.batch_first:
            return super().forward(query, key, value, identity, *args, **kwargs)
        return (query if identity is None else identity) + self.branch_dropout(self.branch(query))

    def at(self, tokens: Tokens) -> 'MultiheadAttention':
        """What a reducer attends ``tokens`` with: this module, which asks for no positions."""
        return self

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values: (B, N, C) -> three of (B, heads, N, C / heads); ``kept`` makes no difference."""
        qkv = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """Attention and output projection: (B, heads, N, D) each -> (B, N, C); ``bias`` as of ``attention``."""
        out = attention(q, k, v, self.backend, self.attn.dropout if self.training else 0., bias)
        return self.attn.out_proj(out.transpose(1, 2).flatten(2))

    def branch(self, x: Tensor) -> Tensor:
        """Self-attention without residual and drop path: (B, N, C) -> (B, N, C)."""
        return self.attend(*self.qkv(x))

    def branch_dropout(self, x: Tensor) -> Tensor:
        """The dropouts between branch and residual."""
        return self.dropout_layer(self.proj_drop(x))


@twin_of(mmcv_transformer.MultiheadAttention)
def _attention_twin(module, attn_backend):
    twin = share(MultiheadAttention, module)
    twin.backend = attn_backend
    return twin


class ReducibleLayer:
    """Mixin of a pre-norm layer on ``Tokens``, with the reducer's five moments.

    A subclass has ``norm1``, ``attn`` with ``at(tokens)`` and ``branch_dropout``, ``norm2``, ``ffn`` with
    ``dropout_layer``, ``with_cp``, and says what the FFN is without its residual.
    """

    def forward(self, tokens: Tokens, reducer: TokenReducer, i: int) -> Tokens:
        """Layer ``i`` with the reducer's moments; ``with_cp`` recomputes all but the first and last."""
        tokens = reducer.before_layer(i, tokens)
        if self.with_cp and tokens.x.requires_grad:
            tokens = cp.checkpoint(self._inner_forward, tokens, reducer, i, use_reentrant=False)
        else:
            tokens = self._inner_forward(tokens, reducer, i)
        return reducer.after_layer(i, tokens)

    def _inner_forward(self, tokens, reducer, i):
        branch = reducer.attention(i, self.attn.at(tokens), self.norm1(tokens.x), tokens)
        tokens = reducer.between(i, tokens.replace(x=tokens.x + self.attn.branch_dropout(branch)))
        branch = reducer.ffn(i, self._ffn_branch, self.norm2(tokens.x), tokens)
        return tokens.replace(x=tokens.x + self.ffn.dropout_layer(branch))

    def _ffn_branch(self, x):
        raise NotImplementedError


class TransformerEncoderLayer(ReducibleLayer, vit.TransformerEncoderLayer):
    """mmseg's ViT layer on ``Tokens``; made from a stock one by ``reducible``."""

    def _ffn_branch(self, x):
        return self.ffn.gamma2(self.ffn.layers(x))


def reducible(layer: vit.TransformerEncoderLayer, attn_backend: str) -> TransformerEncoderLayer:
    """The twin of a stock encoder layer that runs on ``Tokens``."""
    twin = share(TransformerEncoderLayer, layer)
    twin.attn = _attention_twin(layer.attn, attn_backend)
    return twin
