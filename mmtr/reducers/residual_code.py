"""A learned code of what merging loses: what a patch differs from its token by, in a narrow bottleneck."""

from typing import Union

from torch import Tensor, nn

from .backbone_info import BackboneInfo


class ResidualCode(nn.Module):
    """Adds to a restored patch what its residual would have become in the layers: D(sigmoid(G y) * E z), at first 0.

    z is the residual, a patch token minus its representative when it was merged, and y the representative when tokens
    are restored. ``restore='residual'`` gives back z as it was, y + z; here it is given back as y + z + D(...), with a
    code E z of a quarter of the channels. NSR (see docs/token_reduction.md) adds what it decodes from codes to copies.

    Args:
        channels: Number of channels of the tokens, C.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(channels // 4, 1)
        self.encode = nn.Linear(channels, width, bias=False)
        self.gate = nn.Linear(channels, width)
        self.decode = nn.Linear(width, channels, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise as torch, the last layer with zeros, so that nothing is added."""
        self.encode.reset_parameters()
        self.gate.reset_parameters()
        nn.init.zeros_(self.decode.weight)

    def forward(self, residual: Tensor, restored: Tensor) -> Tensor:
        """Compute what is added to patches.

        Args:
            residual: (B, N, C) z.
            restored: (B, N, C) y.
        """
        return self.decode(self.gate(restored).sigmoid() * self.encode(residual))


def restoration(restore: str, backbone: BackboneInfo) -> Union[str, ResidualCode]:
    """Return what ``Tokens.reduced`` restores by: a ``ResidualCode`` for ``learned``, any other ``restore`` itself."""
    return ResidualCode(backbone.embed_dims) if restore == 'learned' else restore
