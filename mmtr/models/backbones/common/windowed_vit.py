"""Attention within windows of the patch grid, as long as no token is reduced."""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from mmtr.ops.windows import bias_within, from_windows, to_windows
from mmtr.tokens import Tokens

from .attention import Group, TokenAttention


@dataclass
class WindowedViTAttention(TokenAttention):
    """Base class of attention bound to tokens that is windowed as long as no token is reduced; then all are one group.

    A backbone implements ``cut``, beside what ``TokenAttention`` needs.

    Args:
        module: Module with the weights, a ``backend``, and a ``window``: the side of a window in patches; None: global.
        tokens: Tokens of the layer.
    """

    module: Any
    tokens: Tokens

    @property
    def backend(self) -> str:
        """The attention backend, see ``TokenAttention``."""
        return self.module.backend

    def windowed(self, count: int) -> bool:
        """Say whether ``count`` tokens attend within windows: only those of the full grid do."""
        grid = self.tokens.grid
        return self.module.window is not None and self.tokens.index is None and count == grid[0] * grid[1]

    def cut(self, q: Tensor, k: Tensor, v: Tensor) -> Group:
        """Cut the result of ``qkv`` into windows, as one group (B * windows, heads, window * window, D)."""
        raise NotImplementedError

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Split the tokens into windows as long as no token is reduced; then all are one group."""
        batch, count = q.shape[0], q.shape[2]
        if not self.windowed(count):
            q, k, own = self.positioned(q, k, kept)
            return [(q, k, v, bias if own is None else own if bias is None else own + bias)]
        q, k, v, within = self.cut(q, k, v)
        if bias is not None:
            place = torch.arange(count, device=k.device).view(1, 1, -1, 1)
            place = to_windows(place, self.tokens.grid, self.module.window, count).flatten(1)
            given = bias_within(bias.expand(batch, *bias.shape[1:]), place)
            within = given if within is None else given + within
        return [(q, k, v, within)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """Join the outputs of the groups, and project them, see ``TokenAttention``."""
        if self.windowed(count):
            outs = [from_windows(out, self.tokens.grid, self.module.window) for out in outs]
        return super().join(outs, count)
