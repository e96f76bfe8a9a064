"""Adapter: a bottleneck MLP parallel to the FFN of every layer (AdaptFormer)."""

import torch
from mmengine.model import kaiming_init
from torch import Tensor, nn

from mmtr.reducers import BackboneInfo
from mmtr.registry import PEFTS
from mmtr.settings import PROBABILITY, Choice, Number, Whole
from mmtr.tokens import Tokens

from .base import PEFT

NORMS = ('none', 'in', 'out')
# Declarations of settings, for Adapter and DAR.
HIDDEN = Whole(1, 2**14)
NORM = Choice(*NORMS)
SCALE = Number(above=0, most=1000)


def norm_at(place: str, norm: str, channels: int) -> nn.Module:
    """Return a LayerNorm if ``norm`` is ``place`` (``in`` or ``out``), else an identity."""
    return nn.LayerNorm(channels) if norm == place else nn.Identity()


class Bottleneck(nn.Module):
    """A bottleneck MLP: linear C -> ``hidden``, ReLU, dropout, linear ``hidden`` -> C, the last initialised to 0.

    Args:
        channels: Number of channels of the tokens, C.
        hidden: Number of channels of the hidden layer.
        norm: Place of a LayerNorm: ``in``, before the MLP, ``out``, after it, or ``none``.
        dropout: Dropout probability in the hidden layer.
    """

    def __init__(self, channels: int, hidden: int, norm: str, dropout: float):
        super().__init__()
        self.norm_in, self.norm_out = (norm_at(place, norm, channels) for place in ('in', 'out'))
        self.down, self.up = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the released code: Kaiming for the first linear layer, zeros for the last."""
        kaiming_init(self.down, distribution='uniform')
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP: (..., C) -> (..., C)."""
        return self.norm_out(self.up(self.dropout(self.down(self.norm_in(x)).relu())))


class Scale(nn.Module):
    """A learned scalar that multiplies its input.

    Args:
        start: Initial value.
    """

    def __init__(self, start: float):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(()))
        self.init_weights()

    def init_weights(self) -> None:
        """Set the initial value."""
        nn.init.constant_(self.weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x``, of any shape; its dtype stays."""
        return x * self.weight.to(x.dtype)


@PEFTS.register_module()
class Adapter(PEFT):
    """AdaptFormer (Chen et al., NeurIPS 2022): x <- x + FFN(LN x) + s Adapter(x), with s learned.

    Args:
        backbone: Layers and channels of the backbone.
        bottleneck: Number of channels of the MLP's hidden layer.
        norm: Place of a LayerNorm: ``in``, before the MLP, ``out``, after it, or ``none``.
        dropout: Dropout probability in the hidden layer.
        scale: Initial value of s.

    Raises:
        UserError: A setting has a value that is not allowed.
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
        """Add s Adapter(tokens) to the output of layer ``i``."""
        return x + self.scales[i](self._branch(i, tokens))

    def _branch(self, i, tokens):
        return self.adapters[i](tokens.x)
