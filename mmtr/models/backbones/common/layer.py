"""Attention and encoder layer of mmcv / mmseg with fused attention and the reducer's five moments."""

from dataclasses import dataclass
from typing import Callable, Optional

import mmcv.cnn.bricks.transformer as mmcv_transformer
import torch.utils.checkpoint as cp
from mmseg.models.backbones import vit
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.ops.attention import attention
from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer, attend
from mmtr.tokens import Tokens

from .twins import share, twin_of


class Projection(nn.Module):
    """``F.linear`` with a weight that belongs to another module, as a module: forward hooks can join in."""

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        """(..., inputs), (outputs, inputs), (outputs, ) -> (..., outputs)."""
        return F.linear(x, weight, bias)


class MultiheadAttention(mmcv_transformer.MultiheadAttention):
    """mmcv's ``MultiheadAttention``, self-attention through a fused backend; made by ``replace_with_twins``."""

    def forward(self, query, key=None, value=None, identity=None, *args, branch=None, **kwargs):
        """As stock, the attention itself by ``branch`` if given; but plain batch-first self-attention runs as stock."""
        if branch is not None:
            return identity + self.branch_dropout(branch(query))
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
        qkv = self.in_projection(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """Attention and output projection: (B, heads, N, D) each -> (B, N, C); ``bias`` as of ``attention``."""
        out = attention(q, k, v, self.backend, self.attn.dropout if self.training else 0.0, bias)
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
    twin.backend, twin.in_projection = attn_backend, Projection()
    return twin


class FFN(mmcv_transformer.FFN):
    """mmcv's ``FFN``, of which a reducer may compute the branch; made by ``reducible``."""

    def forward(self, x, identity=None, branch=None):
        """As stock, the layers by ``branch`` if given."""
        return super().forward(x, identity) if branch is None else identity + self.dropout_layer(branch(x))

    def branch(self, x: Tensor) -> Tensor:
        """The layers without residual and drop path: (..., C) -> (..., C)."""
        return self.gamma2(self.layers(x))


@dataclass
class Step:
    """What a layer is called with beside its tensor, which is all that forward hooks see, as of a stock layer.

    Args:
        tokens: Those that enter the layer; after the call, those that leave it.
        reducer: Whose moments the layer has.
        i: Which layer it is.
        peft: What is trained beside frozen weights.
        first: Layers before those that the reducer counts; ``peft`` counts them too.
    """

    tokens: Tokens
    reducer: TokenReducer
    i: int
    peft: Optional[PEFT] = None
    first: int = 0


def run_layer(
    layer: nn.Module, tokens: Tokens, reducer: TokenReducer, i: int, peft: Optional[PEFT] = None, first: int = 0
) -> Tokens:
    """Layer ``i``, a ``ReducibleLayer``, on ``tokens``; see ``Step``."""
    step = Step(tokens, reducer, i, peft, first)
    x = layer(tokens.x, step=step)
    return step.tokens.replace(x=x)


class ReducibleLayer:
    """Mixin of a pre-norm layer with the reducer's five moments, run by ``run_layer``.

    A subclass has ``norm1``, ``attn`` with ``at(tokens)``, ``norm2``, ``ffn`` with ``branch``, ``with_cp``, and says
    which linear layers it has.
    """

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """(B, N, C) -> that of the tokens that leave; ``with_cp`` recomputes all but the first and last moment."""
        reducer, i, peft, first = step.reducer, step.i, step.peft, step.first
        tokens = reducer.before_layer(i, step.tokens.replace(x=x))
        if self.with_cp and tokens.x.requires_grad:
            tokens = cp.checkpoint(self._inner_forward, tokens, reducer, i, peft, first, use_reentrant=False)
        else:
            tokens = self._inner_forward(tokens, reducer, i, peft, first)
        step.tokens = reducer.after_layer(i, tokens)
        return step.tokens.x

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """The linear layers by name, ``qkv``, ``proj``, ``fc1``, ``fc2``: the module that runs each, and its weight."""
        raise NotImplementedError

    def _inner_forward(self, tokens, reducer, i, peft, first):
        # Attention and FFN are called, as in stock, so that hooks on them run, and compute what the reducer says.
        noted = []

        def branch(x):
            out, after = attend(reducer, i, self.attn.at(tokens), x, tokens)
            noted.append(after)
            return out

        x = self._attend(self.norm1(tokens.x), tokens, branch)
        tokens = reducer.between(i, noted[-1].replace(x=x))
        x = self.ffn(
            self.norm2(tokens.x), identity=tokens.x, branch=lambda x: reducer.ffn(i, self.ffn.branch, x, tokens)
        )
        return tokens.replace(x=x if peft is None else peft.add_branch(first + i, x, tokens))

    def _attend(self, x, tokens, branch: Callable):
        """Attention ``branch`` of the normed ``x`` with residual, through ``attn``."""
        return self.attn(x, identity=tokens.x, branch=branch)


class TransformerEncoderLayer(ReducibleLayer, vit.TransformerEncoderLayer):
    """mmseg's ViT layer on ``Tokens``; made from a stock one by ``reducible``."""

    def linears(self):
        """See ``ReducibleLayer``."""
        attn, ((fc1, *_), fc2, *_) = self.attn.attn, self.ffn.layers
        return dict(
            qkv=(self.attn.in_projection, attn.in_proj_weight),
            proj=(attn.out_proj, attn.out_proj.weight),
            fc1=(fc1, fc1.weight),
            fc2=(fc2, fc2.weight),
        )


def reducible(layer: vit.TransformerEncoderLayer, attn_backend: str) -> TransformerEncoderLayer:
    """The twin of a stock encoder layer that runs on ``Tokens``."""
    twin = share(TransformerEncoderLayer, layer)
    twin.attn, twin.ffn = _attention_twin(layer.attn, attn_backend), share(FFN, layer.ffn)
    return twin
