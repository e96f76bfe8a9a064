"""Adapter: a small MLP beside the FFN of every layer."""

import torch
from mmengine.model import kaiming_init
from torch import Tensor, nn

from mmtr.reducers import BackboneInfo
from mmtr.registry import PEFTS
from mmtr.settings import PROBABILITY, Choice, Number, Whole
from mmtr.tokens import Tokens

from .base import PEFT

NORMS = ('none', 'in', 'out')
# What settings may be, here and in DAR.
HIDDEN = Whole(1, 2**14)
NORM = Choice(*NORMS)
SCALE = Number(above=0, most=1000)


def norm_at(place: str, norm: str, channels: int) -> nn.Module:
    """A LayerNorm if ``norm`` says that there is one at ``place``, ``in`` or ``out``."""
    return nn.LayerNorm(channels) if norm == place else nn.Identity()


class Bottleneck(nn.Module):
    """Linear C -> ``hidden``, ReLU, dropout, linear ``hidden`` -> C, which is 0 at first.

    Args:
        channels: C.
        hidden: Channels between.
        norm: Where a LayerNorm is, one of ``NORMS``.
        dropout: Probability.
    """

    def __init__(self, channels: int, hidden: int, norm: str, dropout: float):
        super().__init__()
        self.norm_in, self.norm_out = (norm_at(place, norm, channels) for place in ('in', 'out'))
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """As the released code."""
        kaiming_init(self.down, distribution='uniform')
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.norm_out(self.up(self.dropout(self.down(self.norm_in(x)).relu())))


class Scale(nn.Module):
    """A learned factor.

    Args:
        start: Its first value.
    """

    def __init__(self, start: float):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(()))
        self.init_weights()

    def init_weights(self) -> None:
        """The first value."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape and dtype of ``x``."""
        return x * self.weight.to(x.dtype)


@PEFTS.register_module()
class Adapter(PEFT):
    """AdaptFormer (Chen et al., NeurIPS 2022): x <- x + FFN(LN x) + s Adapter(x), with s learned.

    Args:
        backbone: See ``PEFT``.
        bottleneck: Channels of the MLP's hidden layer.
        norm: A LayerNorm at the MLP's input (``in``) or output (``out``), or ``none``.
        dropout: Probability, in the hidden layer.
        scale: First value of s.

    Raises:
        UserError: A setting cannot work.
    """

    def __init__(
        self,
        backbone: BackboneInfo,
        bottleneck: HIDDEN = 72,
        norm: NORM = 'none',
        dropout: PROBABILITY = 0.0,
        scale: SCALE = 0.1,
    ):
        super().__init__(backbone)
        self.adapters = nn.ModuleList(
            Bottleneck(channels, bottleneck, norm, dropout) for channels in backbone.layer_dims
        )
        self.scales = nn.ModuleList(Scale(float(scale)) for _ in backbone.layer_dims)

    def add_branch(self, i: int, x: Tensor, tokens: Tokens) -> Tensor:
        """x + s Adapter(tokens)."""
        return x + self.scales[i](self._branch(i, tokens))

    def _branch(self, i, tokens):
        return self.adapters[i](tokens.x)
