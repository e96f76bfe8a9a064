"""``Tokens``, the value that a backbone passes from layer to layer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Callable, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.ops.shifted_windows import Windows
from mmtr.undo import Undo, way_back

#: The memo of a forward pass without notes.
NOTHING = MappingProxyType({})


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences with their positions in the patch grid. Immutable.

    Args:
        x: (B, P + N, C) tokens, prefix tokens (class, registers) first, then patch tokens.
        grid: (H, W) of the full patch grid, in patches.
        num_prefix: Number of prefix tokens, P.
        index: (B, N) raster position of each patch token in the full grid, H * W for a token without a position;
            None: every patch has its token, in raster order.
        size: (B, N) number of patches that each patch token represents, 0 for padding; None: one each.
        undo: Undo steps that restore a token for every patch; None: no token was reduced.
        memo: Notes of a reducer for later layers of this forward pass. Read-only, since activation checkpointing
            runs a layer twice on the same memo.
        rotary: Tables of ``mmtr.ops.rotary`` for the full grid: one of the whole grid, and one of windows if the
            backbone has windowed layers; empty without rotary position embedding.
        windows: Windows of the current token grid, for layers whose tokens attend within them; None: there are none.
        form: (H', W') of the grid that the patch tokens form in this layer, where it has convolutions; else None.
        visible: (B, Q, H * W) which patches each learned query sees, bool; queries are the last Q prefix tokens. None:
            all tokens see all.
        gives_back: Whether patches get tokens again; otherwise nothing is computed or kept for that.
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
    form: Optional[tuple[int, int]] = None
    visible: Optional[Tensor] = None
    gives_back: bool = True

    def replace(self, **changes) -> 'Tokens':
        """Return a copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def remember(self, **notes) -> 'Tokens':
        """Return a copy with ``notes`` added to its memo."""
        return self.replace(memo=MappingProxyType({**self.memo, **notes})) if notes else self

    def forget(self, *names: str) -> 'Tokens':
        """Return a copy without the notes of these names in its memo."""
        kept = {name: note for name, note in self.memo.items() if name not in names}
        return self if len(kept) == len(self.memo) else self.replace(memo=MappingProxyType(kept))

    @property
    def prefix(self) -> Tensor:
        """The prefix tokens (B, P, C)."""
        return self.x[:, : self.num_prefix]

    @property
    def patches(self) -> Tensor:
        """The patch tokens (B, N, C)."""
        return self.x[:, self.num_prefix :]

    @property
    def positions(self) -> Tensor:
        """The raster position of each patch token (B, N), H * W for a token without one."""
        if self.index is not None:
            return self.index
        return torch.arange(self.grid[0] * self.grid[1], device=self.x.device).expand(self.x.shape[0], -1)

    def visible_shares(self) -> Tensor:
        """Return the share of its patches by which each query sees each patch token: (B, Q, N), 0 to 1.

        A token without a position is seen by all queries.
        """
        if self.undo is None:
            return self.visible.to(self.x.dtype)
        visible = F.pad(self.visible.to(self.x.dtype), (0, 1), value=1.0)
        at_home = visible.gather(2, self.index.unsqueeze(1).expand(-1, visible.shape[1], -1))
        if not self.undo.merges:
            return at_home
        own = torch.arange(self.index.shape[1], device=self.index.device).expand_as(self.index)
        slots = self.undo.trace(own).unsqueeze(1)
        counts = torch.zeros_like(at_home[:, :1]).scatter_add(2, slots, torch.ones_like(visible[:, :1, :-1]))
        sums = torch.zeros_like(at_home).scatter_add(2, slots.expand_as(self.visible), visible[..., :-1])
        return torch.where(counts > 0, sums / counts.clamp(min=1), at_home)

    def reduced(
        self,
        x: Tensor,
        step: Undo,
        index: Tensor,
        size: Optional[Tensor],
        restore: Union[str, Callable[[Tensor, Tensor], Tensor]],
    ) -> 'Tokens':
        """Replace the N patch tokens by M reduced ones, and note how to undo that.

        Args:
            x: (B, M, C) reduced patch tokens.
            step: Undo step of this reduction.
            index: (B, M) raster positions of the reduced tokens.
            size: (B, M) number of patches that each one represents; None: one each.
            restore: What a patch gets when tokens are restored: ``residual``, its own value plus the change of its
                representative; or this and what a function adds, see ``Change``; otherwise a copy of it.
        """
        code = restore if callable(restore) else None
        change = self.gives_back and (restore == 'residual' or code is not None)
        undo = way_back(self.undo, step, self.patches, x, change, code)
        return self.replace(x=torch.cat([self.prefix, x], 1), index=index, size=size, undo=undo)

    def restored(self) -> 'Tokens':
        """Return a token for every patch, in raster order; or the tokens as they are, unless it ``gives_back``."""
        if self.undo is None or not self.gives_back:
            return self
        x = torch.cat([self.prefix, self.undo.expand(self.patches)], 1)
        return self.replace(x=x, index=None, size=None, undo=None, memo=NOTHING)
