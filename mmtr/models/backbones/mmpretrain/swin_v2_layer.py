"""Swin V2's attention, block and stage with fused attention and the five moments of a reducer."""

import math

import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from mmpretrain.models.backbones import swin_transformer_v2
from mmpretrain.models.utils import ShiftWindowMSA as StockAttention
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import FFN
from mmtr.models.backbones.common.twins import share
from mmtr.models.backbones.swin.layer import ReducibleSwinBlock, ReducibleWindowMSA, WindowAttentionAt, run_blocks
from mmtr.ops.relative_bias import log_spaced_offsets, offset_index, relative_bias
from mmtr.ops.shifted_windows import gather_pieces, make_layout
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens

#: The largest factor of the cosines, as in stock.
MOST = math.log(100)


class ShiftWindowMSA(ReducibleWindowMSA, StockAttention):
    """mmpretrain's ``ShiftWindowMSA`` with cosine attention, on ``Tokens``; made by ``reducible_stage``."""

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``; as in stock, a window as large as the map may not be shifted."""
        filled = min(tokens.grid) == self.window_size and not self.pad_small_map
        return CosineAttentionAt(self, tokens, self.shift_size > 0 and not filled)


class CosineAttentionAt(WindowAttentionAt):
    """Cosine attention (Swin V2, Liu et al., CVPR 2022, Sec. 3.2) within windows, bound to tokens.

    The bias is a function of offsets (Sec. 3.3). In reduced windows these are the offsets between the patches where
    the tokens stand, so each window has a bias of its own. What pads reduced windows stands evenly in them. In a
    shifted window the patches of neighbours may be farther apart than a window.

    Args:
        module: Module with the weights.
        tokens: Tokens of the layer.
        shifted: Whether the windows are shifted.
    """

    def __init__(self, module: ShiftWindowMSA, tokens: Tokens, shifted: bool):
        super().__init__(module, tokens, shifted)
        self.tokens, self.shifted = tokens, shifted

    def _linear(self, x):
        module = self.module
        x = module.qkv(x)
        if module.q_bias is None:
            return x
        return x + torch.cat([module.q_bias, torch.zeros_like(module.v_bias), module.v_bias]).to(x.dtype)

    def _scaled(self, q, k):
        scale = self.module.logit_scale.clamp(max=MOST).exp() * q.shape[-1] ** 0.5
        # In float16 the least norm would be 0, and padding, which has no direction, would not be a number.
        wide = torch.promote_types(q.dtype, torch.float32)
        return tuple((F.normalize(t.to(wide), dim=-1) * by).to(t.dtype) for t, by in ((q, scale), (k, 1)))

    def _biases(self):
        if self.tokens.index is None:
            return super()._biases()
        positions, places = self._places()
        extent = tuple(n * (1 + self.shifted) for n in self.module.window_size)
        table = self._table(extent)
        parts = (part.unbind(2) for part in gather_pieces(places, positions))
        return [relative_bias(table, offset_index(place, place, extent)) for place in parts]

    def _table(self, extent=None):
        """Return the bias of each offset within a window, or within ``extent`` (H, W): (offsets, heads)."""
        module = self.module
        coordinates = module.relative_coords_table
        if extent not in (None, tuple(module.window_size)):
            height, width = module.window_size
            # Stock keeps the coordinates, but not the window of pretraining that they are scaled by.
            unit = 2 ** (3 * coordinates[0, height, width - 1, 0].float()) - 1
            coordinates = log_spaced_offsets(extent, unit).to(coordinates.dtype)
        return 16 * module.cpb_mlp(coordinates).view(-1, module.num_heads).sigmoid()

    def _places(self):
        """Return the positions of pieces in the padded reduced grid, and row and column of each token there (B, N, 2).

        These are of the full grid, as ``tokens.index`` says.
        """
        index, (height, width), window = self.tokens.index, self.windows.grid, self.windows.window
        places = torch.stack([index // self.tokens.grid[1], index % self.tokens.grid[1]], 2)
        if not self.layout.padded:
            return self.layout.positions, places
        padded = tuple(-(-n // side) * side for n, side in zip((height, width), window))
        even = (
            place // side * whole + (2 * (place % side) + 1) * whole // (2 * side)
            for place, side, whole in zip(
                (torch.arange(n, device=index.device) for n in padded), window, self.module.window_size
            )
        )
        filled = torch.stack(torch.meshgrid(*even, indexing='ij'), 2).repeat(index.shape[0], 1, 1, 1)
        filled[:, :height, :width] = places.unflatten(1, (height, width))
        shift = tuple(side // 2 * self.shifted for side in window)
        return make_layout(padded, window, shift, device=index.device).positions, filled.flatten(1, 2)


class SwinBlockV2(ReducibleSwinBlock, swin_transformer_v2.SwinBlockV2):
    """mmpretrain's ``SwinBlockV2``, which norms what its branches return; made by ``reducible_stage``."""

    def _before(self, norm, x):
        return x

    def _attend(self, x, tokens, branch):
        return tokens.x + self.norm1(self.attn(x, tokens.grid, branch=branch))

    def _feed(self, x, tokens, branch):
        x = tokens.x + self.norm2(self.ffn(x, identity=x, branch=branch))
        return self.norm3(x) if self.extra_norm else x


class SwinStageV2(swin_transformer_v2.SwinBlockV2Sequence):
    """mmpretrain's ``SwinBlockV2Sequence`` with a reducer; made by ``reducible_stage``."""

    def forward(self, x: Tensor, grid: tuple[int, int], reducer: TokenReducer, peft=None, first: int = 0):
        """Run the downsampling and the blocks of the stage; see ``SwinStage`` for the arguments.

        Returns:
            Tokens (B, H * W, C) and grid (H, W) of this stage.

        Raises:
            UserError: The grid is smaller than the window, and is not padded.
        """
        if self.downsample:
            x, grid = self.downsample(x, grid)
        # Inside a jit trace sizes are tensors, see ReducibleBackbone.
        grid = int(grid[0]), int(grid[1])
        attn = self.blocks[0].attn
        if min(grid) < attn.window_size and not attn.pad_small_map:
            raise UserError(
                f'A stage has {grid[0]}x{grid[1]} tokens for this image, fewer than window_size={attn.window_size}: '
                'give larger images, a smaller window_size, or pad_small_map=True.'
            )
        return run_blocks(self.blocks, x, grid, reducer, peft, first), grid


def reducible_stage(stage: swin_transformer_v2.SwinBlockV2Sequence, attn_backend: str) -> SwinStageV2:
    """Return the twin of a stage.

    Raises:
        UserError: Its blocks have different windows, or a shift that is not half a window.
    """
    made = {(block.attn.window_size, block.attn.pad_small_map) for block in stage.blocks}
    shifts = {block.attn.shift_size for block in stage.blocks}
    side = stage.blocks[0].attn.window_size
    if len(made) > 1 or shifts - {0, side // 2}:
        raise UserError(
            f'stage_cfgs gives the blocks of a stage the (window_size, pad_small_map) {sorted(made)} and the shifts '
            f'{sorted(shifts)}: tokens can be reduced if all have the same, and shifts are 0 or half a window.'
        )
    twin = share(SwinStageV2, stage)
    twin.blocks = ModuleList(_reducible_block(block, attn_backend) for block in stage.blocks)
    return twin


def _reducible_block(block: nn.Module, attn_backend: str) -> SwinBlockV2:
    twin = share(SwinBlockV2, block)
    twin.attn, twin.ffn = share(ShiftWindowMSA, block.attn), share(FFN, block.ffn)
    twin.attn.backend = attn_backend
    return twin
