"""The transformer layer of every backbone: attention and FFN with the five moments of a reducer."""

from dataclasses import dataclass
from typing import Callable, Optional

import mmcv.cnn.bricks.transformer as mmcv_transformer
import torch.utils.checkpoint as cp
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer, attend
from mmtr.tokens import Tokens

from .queries import seen_by_queries


class Projection(nn.Module):
    """``F.linear`` with the weight of another module, as a module, so that it can have forward hooks."""

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor], rows: Optional[slice] = None) -> Tensor:
        """Project ``x`` by (some rows of) a weight: (..., inputs), (outputs, inputs), (outputs, ) -> (..., rows)."""
        if rows is None:
            return F.linear(x, weight, bias)
        return F.linear(x, weight[rows], None if bias is None else bias[rows])


class FFN(mmcv_transformer.FFN):
    """mmcv's ``FFN`` with a replaceable branch; made by ``reducible``."""

    def forward(
        self, x: Tensor, identity: Optional[Tensor] = None, branch: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
        """Run the FFN with residual and drop path; ``branch`` computes the layers if given: (..., C) -> (..., C)."""
        if branch is None:
            return super().forward(x, identity)
        out = self.dropout_layer(branch(x))
        return identity + out if self.add_identity else out

    def branch(self, x: Tensor) -> Tensor:
        """Run the layers without residual and drop path: (..., C) -> (..., C)."""
        return self.gamma2(self.layers(x))

    def ends(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the first and the last linear layer."""
        (first, *_), last, *_ = self.layers
        return first, last


@dataclass
class Step:
    """The arguments of a layer besides its input tensor; forward hooks see tensors only, as in a stock layer.

    Args:
        tokens: Tokens that enter the layer; after the call, tokens that leave it.
        reducer: Reducer that acts in the layer.
        i: Index of the layer, as the reducer counts.
        peft: Fine-tuning method that adds a branch to the layer; None: there is none.
        first: Number of layers before layer 0 of the reducer; ``peft`` counts them too.
    """

    tokens: Tokens
    reducer: TokenReducer
    i: int
    peft: Optional[PEFT] = None
    first: int = 0


def run_layer(
    layer: nn.Module, tokens: Tokens, reducer: TokenReducer, i: int, peft: Optional[PEFT] = None, first: int = 0
) -> Tokens:
    """Run a ``ReducibleLayer`` on tokens, and return the tokens after it; for the arguments see ``Step``."""
    step = Step(tokens, reducer, i, peft, first)
    x = layer(tokens.x, step=step)
    return step.tokens.replace(x=x)


class ReducibleLayer:
    """Mixin for a transformer layer with the five moments of a reducer, run by ``run_layer``.

    The layer is pre-norm; one that norms its branches overrides ``_before``, ``_attend`` and ``_feed``.

    A subclass has ``norm1``, ``attn`` with ``at(tokens)``, ``norm2``, ``ffn`` with ``branch``, and ``with_cp``, and
    implements ``linears``.
    """

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Run the layer: (B, P + N, C) -> (B, P + M, C); ``with_cp`` checkpoints all but the first and last moment."""
        reducer, i, peft, first = step.reducer, step.i, step.peft, step.first
        tokens = reducer.before_layer(i, step.tokens.replace(x=x))
        if self.with_cp and tokens.x.requires_grad:
            tokens = cp.checkpoint(self._inner_forward, tokens, reducer, i, peft, first, use_reentrant=False)
        else:
            tokens = self._inner_forward(tokens, reducer, i, peft, first)
        step.tokens = reducer.after_layer(i, tokens)
        return step.tokens.x

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers ``qkv``, ``proj``, ``fc1``, ``fc2``: the module that runs each, and its weight."""
        raise NotImplementedError

    def _inner_forward(self, tokens, reducer, i, peft, first):
        # The modules of attention and FFN are called, as in a stock layer, so that forward hooks on them run.
        noted = []

        def branch(x):
            attn = seen_by_queries(self.attn.at(tokens), tokens, reducer.proportional)
            out, after = attend(reducer, i, attn, x, tokens)
            noted.append(after)
            return out

        x = self._attend(self._before(self.norm1, tokens.x), tokens, branch)
        tokens = reducer.between(i, noted[-1].replace(x=x))
        own = self._ffn_branch(tokens)
        x = self._feed(self._before(self.norm2, tokens.x), tokens, lambda x: reducer.ffn(i, own, x, tokens))
        return tokens.replace(x=x if peft is None else peft.add_branch(first + i, x, tokens))

    def _before(self, norm: nn.Module, x):
        """Return what attention or the FFN is given: ``x`` after its norm."""
        return norm(x)

    def _attend(self, x, tokens, branch: Callable):
        """Run ``attn`` on the normalised ``x``, with ``branch`` as its attention branch, and add the residual."""
        return self.attn(x, identity=tokens.x, branch=branch)

    def _feed(self, x, tokens, branch: Callable):
        """Run ``ffn`` on the normalised ``x``, with ``branch`` as its branch, and add the residual."""
        return self.ffn(x, identity=tokens.x, branch=branch)

    def _ffn_branch(self, tokens) -> Callable:
        """Return the FFN branch of the layer for ``tokens``."""
        return self.ffn.branch
