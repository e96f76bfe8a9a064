"""FFNs of our own layers: with GELU, or gated; with LayerScale or without."""

from typing import Callable, Optional

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.scale import LayerScale
from mmengine.model import BaseModule
from torch import Tensor, nn


def scale_of(channels: int, value: Optional[float]) -> nn.Module:
    """Return LayerScale of an initial ``value``; None: a module that does nothing."""
    return nn.Identity() if value is None else LayerScale(channels, scale=value)


class FeedForward(BaseModule):
    """An FFN, gamma2(fc2(gelu(fc1(x)))), with LayerScale gamma2 if there is one.

    Args:
        embed_dims: Number of channels, C.
        hidden: Number of hidden channels.
        norm_cfg: Config of a norm of the hidden channels; None: no norm.
        drop_path: Drop path probability.
        layer_scale: Initial value of LayerScale; None: there is none.
    """

    #: Number of projections in ``fc1``.
    parts = 1

    def __init__(
        self,
        embed_dims: int,
        hidden: int,
        norm_cfg: Optional[dict] = None,
        drop_path: float = 0.0,
        layer_scale: Optional[float] = None,
    ):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, self.parts * hidden)
        self.norm = nn.Identity() if norm_cfg is None else build_norm_layer(norm_cfg, hidden)[1]
        self.fc2 = nn.Linear(hidden, embed_dims)
        self.gamma2 = scale_of(embed_dims, layer_scale)
        self.dropout_layer = DropPath(drop_path)

    def forward(self, x: Tensor, identity: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``branch(x)``, the FFN branch with drop path, to ``identity``: (B, N, C) -> (B, N, C)."""
        return identity + self.dropout_layer(branch(x))

    def branch(self, x: Tensor) -> Tensor:
        """Run the FFN without residual and drop path: (..., C) -> (..., C)."""
        return self.gamma2(self.fc2(self.norm(self.activate(self.fc1(x)))))

    def ends(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the first and the last linear layer."""
        return self.fc1, self.fc2

    def activate(self, x: Tensor) -> Tensor:
        """Compute the hidden channels from those of ``fc1``."""
        return F.gelu(x)


class SwiGLU(FeedForward):
    """A gated FFN, fc2(norm(silu(gate) * value)), with gate and value from one projection; see ``FeedForward``."""

    parts = 2

    def activate(self, x: Tensor) -> Tensor:
        """Compute the hidden channels from gate and value."""
        gate, value = x.chunk(2, -1)
        return F.silu(gate) * value
