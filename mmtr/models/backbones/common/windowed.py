"""Attention within the windows of a token grid, of modules like mmseg's in Swin and Twins."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.errors import UserError
from mmtr.ops.shifted_windows import Layout, gather_pieces, join_pieces
from mmtr.ops.windows import bias_within

from .attention import Group, TokenAttention


class WindowedAttention(TokenAttention):
    """Attention within the pieces of a token grid.

    Args:
        module: Module with the weights: ``qkv``, ``proj``, ``attn_drop``, ``num_heads`` and ``scale``.
        layout: Pieces of the grid.
        backend: The attention backend, see ``TokenAttention``.
    """

    merges_apart = False

    def __init__(self, module: nn.Module, layout: Layout, backend: str):
        self.module, self.layout, self.backend = module, layout, backend

    @property
    def attention_dropout(self) -> float:
        """The current probability to drop an attention weight, see ``TokenAttention``."""
        return self.module.attn_drop.p if self.module.training else 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values; ``kept`` must be None, since a window needs all of its tokens."""
        if kept is not None:
            raise UserError('Attention within windows needs every token of the grid: reduce before or after a layer.')
        return self._projected(x)

    def branch(self, x: Tensor) -> Tensor:
        """Compute self-attention without residual and drop path; windows of one size are one batch, as in stock."""
        # Padding is zeros after the norm, as in the stock classes.
        padded = F.pad(x, (0, 0, 0, 1)) if self.layout.padded else x
        parts = gather_pieces(padded, self.layout.positions)
        groups = [(*self._projected(part), bias) for part, bias in zip(parts, self._biases())]
        return self.within(groups, x.shape[1])

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Split the tokens into windows; all windows of one size are one group."""
        positions = self.layout.positions
        if self.layout.padded:
            nothing = torch.zeros_like(self.module.qkv.weight[:1])
            q, k, v = (
                torch.cat([t, pad.expand(t.shape[0], -1, -1, -1)], 2)
                for t, pad in zip((q, k, v), self._projected(nothing.unsqueeze(0)))
            )
        parts = zip(*(gather_pieces(t.transpose(1, 2), positions) for t in (q, k, v)))
        biases = self._biases()
        if bias is not None:
            bias = bias.expand(q.shape[0], *bias.shape[1:])
            given = [bias_within(bias, each) for each in positions]
            biases = [each if own is None else own + each for own, each in zip(biases, given)]
        return [(*(t.transpose(1, 2) for t in part), each) for part, each in zip(parts, biases)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """Join the outputs of the groups, and project them, see ``TokenAttention``."""
        outs = [out.transpose(1, 2).flatten(2) for out in outs]
        return self.project(join_pieces(outs, self.layout.positions, self.layout.place))

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.module.proj(x)

    def _projected(self, x):
        q, k, v = self._linear(x).unflatten(-1, (3, self.module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return *self._scaled(q, k), v

    def _linear(self, x):
        return self.module.qkv(x)

    def _scaled(self, q, k):
        """Scale queries and keys so that their products, divided by the root of the channels, are the logits."""
        # The stock class may have another scale.
        usual = q.shape[-1] ** -0.5
        return q if self.module.scale == usual else q * (self.module.scale / usual), k

    def _biases(self):
        """Return the bias within the pieces of each size, (1, heads, h * w, h * w) or None."""
        return [None] * len(self.layout.positions)
