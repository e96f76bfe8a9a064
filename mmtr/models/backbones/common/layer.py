"""The layer of every host: attention and FFN with the reducer's five moments between them."""

from dataclasses import dataclass
from typing import Callable, Optional

import mmcv.cnn.bricks.transformer as mmcv_transformer
import torch.utils.checkpoint as cp
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer, attend
from mmtr.tokens import Tokens


class Projection(nn.Module):
    """``F.linear`` with a weight that belongs to another module, as a module: forward hooks can join in."""

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        """(..., inputs), (outputs, inputs), (outputs, ) -> (..., outputs)."""
        return F.linear(x, weight, bias)


class FFN(mmcv_transformer.FFN):
    """mmcv's ``FFN``, of which a reducer may compute the branch; made by ``reducible``."""

    def forward(
        self, x: Tensor, identity: Optional[Tensor] = None, branch: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
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
