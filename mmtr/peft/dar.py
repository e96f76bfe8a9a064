"""The fine-tuning of DAR: an Adapter and a convolutional Compensator, parallel to the FFN of every layer."""

import torch.nn.functional as F
from mmengine.model import kaiming_init
from torch import Tensor, nn

from mmtr.reducers import BackboneInfo
from mmtr.registry import PEFTS
from mmtr.settings import PROBABILITY, Whole

from .adapter import HIDDEN, NORM, SCALE, Adapter, norm_at


class Compensator(nn.Module):
    """Convolutions over the patch grid: 1x1 C -> ``hidden``, depthwise 3x3, 1x1, GELU, 1x1 ``hidden`` -> C, 0 at first.

    Args:
        channels: Number of channels of the tokens, C.
        hidden: Number of channels of the hidden layers.
        norm: Place of a LayerNorm: ``in``, before the convolutions, ``out``, after them, or ``none``.
    """

    def __init__(self, channels: int, hidden: int, norm: str):
        super().__init__()
        self.norm_in, self.norm_out = (norm_at(place, norm, channels) for place in ('in', 'out'))
        # A 1x1 convolution is a linear layer on each token, for which tokens need no grid.
        self.down, self.mix, self.up = (
            nn.Linear(channels, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, channels),
        )
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as the released code: the last layer with zeros."""
        kaiming_init(self.down, distribution='uniform')
        self.depthwise.reset_parameters()
        self.mix.reset_parameters()
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Apply the convolutions to patch tokens in raster order: (B, H * W, C) -> (B, H * W, C)."""
        x = self.down(self.norm_in(x)).transpose(1, 2).unflatten(2, grid)
        x = self.mix(self.depthwise(x).flatten(2).transpose(1, 2))
        return self.norm_out(self.up(F.gelu(x)))


@PEFTS.register_module()
class DAR(Adapter):
    """The fine-tuning of DAR (Lei et al., CVPR 2025): x <- x + FFN(LN x) + s (Adapter(x) + [0; Compensator(patches)]).

    It compensates for the FFN where ``token_reduction=dict(type='DAR')`` skips it, and works without a reduction too.

    Args:
        backbone: Layers and channels of the backbone.
        bottleneck: Number of channels of the Adapter's hidden layer.
        compensator: Number of channels of the Compensator's hidden layers.
        norm: Place of a LayerNorm in both: ``in``, ``out`` or ``none``.
        dropout: Dropout probability in the Adapter's hidden layer.
        scale: Initial value of s.

    Raises:
        UserError: A setting has a value that is not allowed; or the token reduction removes tokens of the grid.
    """

    needs_grid = True

    def __init__(
        self,
        backbone: BackboneInfo,
        bottleneck: HIDDEN = 72,
        compensator: Whole(1, 2**12) = 48,
        norm: NORM = 'none',
        dropout: PROBABILITY = 0.0,
        scale: SCALE = 2.0,
    ):
        super().__init__(backbone, bottleneck, norm, dropout, scale)
        self.compensators = nn.ModuleList(Compensator(channels, compensator, norm) for channels in backbone.layer_dims)

    def _branch(self, i, tokens):
        branch = super()._branch(i, tokens)
        branch[:, tokens.num_prefix :] += self.compensators[i](tokens.patches, tokens.grid)
        return branch
