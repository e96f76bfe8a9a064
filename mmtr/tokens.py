"""``Tokens``: the one value that flows through a backbone."""

import dataclasses
from dataclasses import dataclass, field
from typing import Optional

from torch import Tensor

from mmtr.ops.shifted_windows import Windows


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences and where they stand in the patch grid. Never changed in place.

    Args:
        x: (B, P + N, C), prefix tokens (class, registers) first.
        grid: (H, W) of the full patch grid, in patches.
        num_prefix: P.
        index: (B, N) raster position of each patch token in the full grid, H * W for a token that has
            none; None: all, in order.
        size: (B, N) how many original patch tokens each one stands for, 0: padding; None: one each.
        memo: What this forward pass must remember until it is restored. Treated as read-only:
            activation checkpointing runs a layer twice on the same memo.
        rotary: Tables of ``mmtr.ops.rotary`` for the full grid, one for each kind of layer; empty where
            the backbone has no rotary position embedding.
        windows: The windows that the tokens attend within, of the grid that they form now; None: all attend to all.
    """

    x: Tensor
    grid: tuple[int, int]
    num_prefix: int = 0
    index: Optional[Tensor] = None
    size: Optional[Tensor] = None
    memo: dict = field(default_factory=dict)
    rotary: tuple[Tensor, ...] = ()
    windows: Optional[Windows] = None

    def replace(self, **changes) -> 'Tokens':
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def prefix(self) -> Tensor:
        """(B, P, C)."""
        return self.x[:, : self.num_prefix]

    @property
    def patches(self) -> Tensor:
        """(B, N, C)."""
        return self.x[:, self.num_prefix :]
