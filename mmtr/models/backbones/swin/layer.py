"""Swin's attention, block and stage with fused attention and the five moments of a reducer."""

from collections.abc import Sequence
from typing import Callable, Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import swin
from torch import Tensor, nn

from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import FFN, ReducibleLayer, run_layer
from mmtr.models.backbones.common.twins import share
from mmtr.models.backbones.common.windowed import WindowedAttention
from mmtr.ops.resize import resize_relative_positions
from mmtr.ops.shifted_windows import make_windows
from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens


class ReducibleWindowMSA:
    """Mixin for a ``ShiftWindowMSA`` on ``Tokens``."""

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


class ShiftWindowMSA(ReducibleWindowMSA, swin.ShiftWindowMSA):
    """mmseg's ``ShiftWindowMSA`` on ``Tokens``; made by ``reducible_stage``."""


class WindowAttentionAt(WindowedAttention):
    """Windowed attention bound to tokens; the windows are shifted in every second block.

    Args:
        module: Module with the weights.
        tokens: Tokens of the layer.
        shifted: Whether the windows are shifted; None: if the module has a shift.
    """

    def __init__(self, module: ReducibleWindowMSA, tokens: Tokens, shifted: Optional[bool] = None):
        shifted = module.shift_size > 0 if shifted is None else shifted
        super().__init__(module.w_msa, tokens.windows.layouts[shifted], module.backend)
        self.windows = tokens.windows

    def _biases(self):
        """Return the relative position bias of windows of each size, (1, heads, h * w, h * w)."""
        table = self._table().t()[:, self.windows.relative]
        return [table[:, :h, :w, :h, :w].flatten(3).flatten(1, 2).unsqueeze(0) for h, w in self.layout.sizes]

    def _table(self):
        """Return the bias of each offset within the windows as they are now: (offsets, heads)."""
        module, windows = self.module, self.windows
        return resize_relative_positions(
            module.relative_position_bias_table, tuple(module.window_size), windows.window, windows.interpolation
        )


class ReducibleSwinBlock(ReducibleLayer):
    """Mixin for a block of Swin on ``Tokens``."""

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, ((fc1, *_), fc2, *_) = self.attn.w_msa, self.ffn.layers
        return {
            name: (linear, linear.weight)
            for name, linear in dict(qkv=attn.qkv, proj=attn.proj, fc1=fc1, fc2=fc2).items()
        }

    def _attend(self, x, tokens, branch):
        return tokens.x + self.attn(x, tokens.grid, branch=branch)


class SwinBlock(ReducibleSwinBlock, swin.SwinBlock):
    """mmseg's ``SwinBlock`` on ``Tokens``; made by ``reducible_stage``."""


def run_blocks(
    blocks: Sequence[nn.Module],
    x: Tensor,
    grid: tuple[int, int],
    reducer: TokenReducer,
    peft: Optional[PEFT] = None,
    first: int = 0,
) -> Tensor:
    """Run the blocks of a stage, and restore all tokens: (B, H * W, C) -> (B, H * W, C); see ``SwinStage``."""
    tokens = Tokens(x, grid, windows=make_windows(grid, tuple(blocks[0].attn.w_msa.window_size), x.device))
    for i, block in enumerate(blocks):
        tokens = run_layer(block, tokens, reducer, i, peft, first)
    return reducer.restore(tokens).x


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
        x = run_blocks(self.blocks, x, grid, reducer, peft, first)
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
