"""``Tokens``: the one value that flows through a backbone."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Optional

import torch
from torch import Tensor

from mmtr.ops.shifted_windows import Windows
from mmtr.undo import Undo, way_back

#: Of a forward pass with nothing to remember.
NOTHING = MappingProxyType({})


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
        undo: What gives every patch a token again; None: each has one.
        memo: What else this forward pass must remember until it is restored. Read-only: activation checkpointing
            runs a layer twice on the same memo.
        rotary: Tables of ``mmtr.ops.rotary`` for the full grid, one for each kind of layer; empty where
            the backbone has no rotary position embedding.
        windows: The windows that the tokens attend within, of the grid that they form now; None: all attend to all.
        gives_back: Whether patches get tokens again. If not, nothing is computed or kept for it.
    """

    x: Tensor
    grid: tuple[int, int]
    num_prefix: int = 0
    index: Optional[Tensor] = None
    size: Optional[Tensor] = None
    undo: Optional[Undo] = None
    memo: Mapping = field(default_factory=lambda: NOTHING)
    rotary: tuple[Tensor, ...] = ()
    windows: Optional[Windows] = None
    gives_back: bool = True

    def replace(self, **changes) -> 'Tokens':
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def remember(self, **notes) -> 'Tokens':
        """A copy with ``notes`` in its memo."""
        return self.replace(memo=MappingProxyType({**self.memo, **notes})) if notes else self

    def forget(self, *names: str) -> 'Tokens':
        """A copy without these names in its memo."""
        kept = {name: note for name, note in self.memo.items() if name not in names}
        return self if len(kept) == len(self.memo) else self.replace(memo=MappingProxyType(kept))

    @property
    def prefix(self) -> Tensor:
        """(B, P, C)."""
        return self.x[:, : self.num_prefix]

    @property
    def patches(self) -> Tensor:
        """(B, N, C)."""
        return self.x[:, self.num_prefix :]

    @property
    def positions(self) -> Tensor:
        """(B, N) raster position of each patch token, H * W for one that has none."""
        if self.index is not None:
            return self.index
        return torch.arange(self.grid[0] * self.grid[1], device=self.x.device).expand(self.x.shape[0], -1)

    def reduced(self, x: Tensor, step: Undo, index: Tensor, size: Optional[Tensor], restore: str) -> 'Tokens':
        """After the patch tokens were reduced to ``x`` (B, M, C).

        Args:
            step: What takes that back.
            index, size: Of the M tokens, see the class.
            restore: ``residual``: patches get the change of what stands for them at the end; else copies of it.
        """
        undo = way_back(self.undo, step, self.patches, x, self.gives_back and restore == 'residual')
        return self.replace(x=torch.cat([self.prefix, x], 1), index=index, size=size, undo=undo)

    def restored(self) -> 'Tokens':
        """A token for every patch, in raster order; as they are, where none ``gives_back``."""
        if self.undo is None or not self.gives_back:
            return self
        x = torch.cat([self.prefix, self.undo.expand(self.patches)], 1)
        return self.replace(x=x, index=None, size=None, undo=None, memo=NOTHING)
