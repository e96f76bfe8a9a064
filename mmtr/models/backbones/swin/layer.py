"""Swin's attention, block and stage with fused attention and the five moments of a reducer."""

from typing import Callable, Optional

import torch
from mmengine.model import ModuleList
from mmseg.models.backbones import swin
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.errors import UserError
from mmtr.models.backbones.common.attention import Group, TokenAttention
from mmtr.models.backbones.common.layer import FFN, ReducibleLayer, run_layer
from mmtr.models.backbones.common.twins import share
from mmtr.ops.resize import resize_relative_positions
from mmtr.ops.shifted_windows import gather_pieces, join_pieces, make_windows
from mmtr.ops.windows import bias_within
from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens


class ShiftWindowMSA(swin.ShiftWindowMSA):
    """mmseg's ``ShiftWindowMSA`` on ``Tokens``; made by ``reducible_stage``."""

    def forward(
        self, query: Tensor, hw_shape: tuple[int, int], branch: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
        """Run shifted window attention with drop path.

        Args:
            query: (B, H * W, C) tokens.
            hw_shape: (H, W) of the tokens.
            branch: Computes the attention branch; None: the stock forward runs.

        Returns:
            (B, H * W, C).
        """
        if branch is None:
            return super().forward(query, hw_shape)
        return self.drop(self.w_msa.proj_drop(branch(query)))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose windows it needs."""
        return WindowAttentionAt(self, tokens)


class WindowAttentionAt(TokenAttention):
    """Windowed attention bound to tokens; the windows are shifted in every second block.

    Args:
        module: Module with the weights.
        tokens: Tokens of the layer.
    """

    merges_apart = False

    def __init__(self, module: ShiftWindowMSA, tokens: Tokens):
        self.module, self.windows, self.backend = module.w_msa, tokens.windows, module.backend
        self.layout = self.windows.layouts[module.shift_size > 0]

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
        # Padding is zeros after the norm, as in the stock class.
        padded = F.pad(x, (0, 0, 0, 1)) if self.layout.padded else x
        parts = gather_pieces(padded, self.layout.positions)
        groups = [(*self._projected(part), bias) for part, bias in zip(parts, self._biases())]
        return self.within(groups, x.shape[1])

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Split the tokens into windows; all windows of one size are one group."""
        module, positions = self.module, self.layout.positions
        if self.layout.padded:
            nothing = torch.zeros_like(module.qkv.weight[:1])
            q, k, v = (
                torch.cat([t, pad.expand(len(t), -1, -1, -1)], 2)
                for t, pad in zip((q, k, v), self._projected(nothing.unsqueeze(0)))
            )
        parts = zip(*(gather_pieces(t.transpose(1, 2), positions) for t in (q, k, v)))
        biases = self._biases()
        if bias is not None:
            bias = bias.expand(len(q), *bias.shape[1:])
            biases = [own + bias_within(bias, each) for own, each in zip(biases, positions)]
        return [(*(t.transpose(1, 2) for t in part), each) for part, each in zip(parts, biases)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """Join the outputs of the groups, and project them, see ``TokenAttention``."""
        outs = [out.transpose(1, 2).flatten(2) for out in outs]
        return self.project(join_pieces(outs, self.layout.positions, self.layout.place))

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.module.proj(x)

    def _projected(self, x):
        module = self.module
        q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # Attention divides by the root of the channels; the stock class may have another scale.
        usual = q.shape[-1] ** -0.5
        return q if module.scale == usual else q * (module.scale / usual), k, v

    def _biases(self):
        """Return the relative position bias of windows of each size, (1, heads, h * w, h * w)."""
        module, windows = self.module, self.windows
        table = resize_relative_positions(
            module.relative_position_bias_table, tuple(module.window_size), windows.window, windows.interpolation
        )
        table = table.t()[:, windows.relative]
        return [table[:, :h, :w, :h, :w].flatten(3).flatten(1, 2).unsqueeze(0) for h, w in self.layout.sizes]


class SwinBlock(ReducibleLayer, swin.SwinBlock):
    """mmseg's ``SwinBlock`` on ``Tokens``; made by ``reducible_stage``."""

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, ((fc1, *_), fc2, *_) = self.attn.w_msa, self.ffn.layers
        return {
            name: (linear, linear.weight)
            for name, linear in dict(qkv=attn.qkv, proj=attn.proj, fc1=fc1, fc2=fc2).items()
        }

    def _attend(self, x, tokens, branch):
        return tokens.x + self.attn(x, tokens.grid, branch=branch)


class SwinStage(swin.SwinBlockSequence):
    """mmseg's ``SwinBlockSequence`` with a reducer; made by ``reducible_stage``."""

    def forward(
        self, x: Tensor, grid: tuple[int, int], reducer: TokenReducer, peft: Optional[PEFT] = None, first: int = 0
    ) -> tuple[Tensor, tuple[int, int], Tensor, tuple[int, int]]:
        """Run the blocks and the downsampling of the stage.

        Args:
            x: (B, H * W, C) tokens.
            grid: (H, W) of the tokens.
            reducer: Reducer that acts in the blocks.
            peft: Fine-tuning method that adds a branch to the blocks.
            first: Number of blocks in earlier stages, which ``peft`` counts too.

        Returns:
            Tokens and grid of the next stage, then tokens and grid of this one.
        """
        window = tuple(self.blocks[0].attn.w_msa.window_size)
        tokens = Tokens(x, grid, windows=make_windows(grid, window, x.device))
        for i, block in enumerate(self.blocks):
            tokens = run_layer(block, tokens, reducer, i, peft, first)
        x = reducer.restore(tokens).x
        if self.downsample is None:
            return x, grid, x, grid
        down, down_grid = self.downsample(x, grid)
        # Inside a jit trace sizes are tensors, see ReducibleBackbone.
        return down, tuple(int(n) for n in down_grid), x, grid


def reducible_stage(stage: swin.SwinBlockSequence, attn_backend: str) -> SwinStage:
    """Return the twin of a stage of mmseg or mmdet, whose classes are alike."""
    twin = share(SwinStage, stage)
    twin.blocks = ModuleList(_reducible_block(block, attn_backend) for block in stage.blocks)
    return twin


def _reducible_block(block, attn_backend):
    twin = share(SwinBlock, block)
    twin.attn, twin.ffn = share(ShiftWindowMSA, block.attn), share(FFN, block.ffn)
    twin.attn.backend = attn_backend
    return twin
