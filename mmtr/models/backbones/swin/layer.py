"""Swin's attention, block and stage with fused attention and the reducer's five moments."""

from typing import Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import swin
from torch import Tensor
from torch.nn import functional as F

from mmtr.models.backbones.common.layer import FFN, ReducibleLayer, run_layer
from mmtr.models.backbones.common.twins import share
from mmtr.ops.attention import attention
from mmtr.ops.resize import resize_relative_positions
from mmtr.ops.shifted_windows import gather_pieces, join_pieces, make_windows
from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens


class ShiftWindowMSA(swin.ShiftWindowMSA):
    """mmseg's ``ShiftWindowMSA`` on ``Tokens``; made by ``reducible_stage``."""

    def forward(self, query, hw_shape, branch=None):
        """As stock, the attention within windows by ``branch`` if given."""
        if branch is None:
            return super().forward(query, hw_shape)
        return self.drop(self.w_msa.proj_drop(branch(query)))

    def at(self, tokens: Tokens) -> 'AttentionAt':
        """What a reducer attends ``tokens`` with."""
        return AttentionAt(self, tokens)


class AttentionAt:
    """Attention within the windows that given tokens are in, shifted in every second block."""

    def __init__(self, module: ShiftWindowMSA, tokens: Tokens):
        self.module, self.windows = module.w_msa, tokens.windows
        self.layout = self.windows.layouts[module.shift_size > 0]
        self.backend = module.backend

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values of windows: (B, n, C) -> three of (B, heads, n, C / heads)."""
        module = self.module
        q, k, v = module.qkv(x).unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        usual = q.shape[-1] ** -0.5
        return q if module.scale == usual else q * (module.scale / usual), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """Attention without the output projection: (B, heads, n, D) each -> (B, n, C)."""
        module = self.module
        out = attention(q, k, v, self.backend, module.attn_drop.p if module.training else 0.0, bias)
        return out.transpose(1, 2).flatten(2)

    def branch(self, x: Tensor) -> Tensor:
        """Attention and output projection, without residual and dropout: (B, H * W, C) -> (B, H * W, C)."""
        module, layout = self.module, self.layout
        table = resize_relative_positions(
            module.relative_position_bias_table,
            tuple(module.window_size),
            self.windows.window,
            self.windows.interpolation,
        )
        bias = table.t()[:, self.windows.relative]
        # Padding is zeros after the norm, as stock has it.
        parts = gather_pieces(F.pad(x, (0, 0, 0, 1)) if layout.padded else x, layout.positions)
        parts = [
            self.attend(*self.qkv(part), bias[:, :h, :w, :h, :w].flatten(3).flatten(1, 2).unsqueeze(0))
            for part, (h, w) in zip(parts, layout.sizes)
        ]
        return module.proj(join_pieces(parts, layout.positions, layout.place))


class SwinBlock(ReducibleLayer, swin.SwinBlock):
    """mmseg's ``SwinBlock`` on ``Tokens``; made by ``reducible_stage``."""

    def linears(self):
        """See ``ReducibleLayer``."""
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
    ):
        """(B, H * W, C) -> that of the next stage and its grid; and of this one and its grid.

        Args:
            first: Blocks of the stages before, which ``peft`` counts too.
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
    """The twin of a stage of mmseg or mmdet, whose classes are alike."""
    twin = share(SwinStage, stage)
    twin.blocks = ModuleList(_reducible_block(block, attn_backend) for block in stage.blocks)
    return twin


def _reducible_block(block, attn_backend):
    twin = share(SwinBlock, block)
    twin.attn, twin.ffn = share(ShiftWindowMSA, block.attn), share(FFN, block.ffn)
    twin.attn.backend = attn_backend
    return twin
