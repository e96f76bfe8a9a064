"""The SwinTransformer of mmseg and mmdet with fused attention, token reduction and PEFT: the backbone."""

import math
from typing import Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import swin
from torch import Tensor

from mmtr.converters import swin as official
from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    HEADS,
    RATIO,
    STOCK,
    Initialisation,
    check_heads,
    check_patches,
    check_start,
)
from mmtr.models.backbones.common.twins import backbone_twin, twin_of
from mmtr.ops.resize import resize_relative_positions
from mmtr.registry import MODELS
from mmtr.settings import Flag, Listed, Maybe, Number, Whole
from mmtr.weights.fit import part_of

from .layer import reducible_stage
from .stages import SwinStages

# Suffixes of the names of buffers that the model computes itself.
COMPUTED = ('attn_mask', 'position_index')
# Number of values in a list with one for each stage.
_STAGES = dict(least=1, most=8)


@MODELS.register_module()
class SwinTransformer(SwinStages, swin.SwinTransformer):
    """The ``SwinTransformer`` of mmseg and mmdet with more arguments; other arguments, weights and outputs are theirs.

    Args:
        token_reduction: ``dict(type=..., stage=..., **settings)`` of a token reducer; None: no reduction. Tokens are
            reduced within each window of one stage, counted from 1 as in the papers (None: the one with most blocks),
            and restored before the next. The layers of the reducer are the blocks of that stage, counted from 0.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
            Its layers are the blocks of all stages, counted from 0.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        convert_weights: mmdet's argument, without effect: official weights are recognised by their names.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, its stage, the PEFT or one of their settings does not exist; a setting has a value that
            is not allowed; the attention backend cannot run here; ``pretrained`` does not fit.
    """

    inherited = dict(
        STOCK,
        window_size=Whole(1, 256),
        mlp_ratio=RATIO,
        depths=Listed(Whole(1, 256), **_STAGES),
        num_heads=Listed(HEADS, **_STAGES),
        strides=Listed(Whole(1, 64), **_STAGES),
        out_indices=Listed(Whole(0, 7), rising=True, **_STAGES),
        qk_scale=Maybe(Number(above=0)),
        frozen_stages=Whole(-1, 8),
        init_cfg=Maybe(Initialisation(of_file=True)),
    )

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        convert_weights: Flag() = False,
        **kwargs,
    ):
        check_start(kwargs['pretrained'], kwargs['init_cfg'])
        _check_stages(**kwargs)
        super().__init__(*args, **kwargs)
        self.make_tunable(attn_backend, token_reduction, peft)

    def _make_reducible(self, attn_backend):
        self.stages = ModuleList(reducible_stage(stage, attn_backend) for stage in self.stages)

    @property
    def patch_size(self) -> int:
        """The side of a patch of the first stage, in pixels."""
        return self.patch_embed.projection.kernel_size[0]

    @property
    def img_size(self) -> tuple[int, int]:
        """The pretraining size (height, width) in pixels: that of an image with one window in the last stage."""
        merged = 2 ** (len(self.stages) - 1) * self.patch_size
        return tuple(side * merged for side in self.stages[-1].blocks[0].attn.w_msa.window_size)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Extract feature maps from images.

        Args:
            x: (B, channels, height, width) normalised images.

        Returns:
            List of (B, C, H, W), one for each of ``out_indices``.

        Raises:
            UserError: With ``use_abs_pos_embed``, the images have not the size of ``pretrain_img_size``.
        """
        x, grid = self.patch_embed(x)
        # Inside a jit trace, as of fvcore and the ONNX exporter, sizes are tensors; windows need ints.
        grid = int(grid[0]), int(grid[1])
        if self.use_abs_pos_embed and x.shape[1] != self.absolute_pos_embed.shape[1]:
            raise UserError(
                f'An image of {grid[0]}x{grid[1]} patches has not the {self.absolute_pos_embed.shape[1]} '
                'positions of use_abs_pos_embed=True: give images of pretrain_img_size.'
            )
        x = self.drop_after_pos(x + self.absolute_pos_embed if self.use_abs_pos_embed else x)
        outs, first = [], 0
        for i, stage in enumerate(self.stages):
            x, next_grid, out, _ = stage(x, grid, self.reducer_of(i)[0], self.peft, first)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(out)
                outs.append(out.transpose(1, 2).unflatten(2, grid).contiguous())
            grid, first = next_grid, first + len(stage.blocks)
        return outs

    def stage_grids(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (rows, columns) of tokens in each stage for an image of ``shape`` (height, width) in pixels."""
        grids = [tuple(-(-n // self.patch_size) for n in shape)]
        for _ in self.stages[1:]:
            grids.append(tuple(-(-n // 2) for n in grids[-1]))
        return grids

    def init_weights(self) -> None:
        """Initialise the weights as the stock class, or load the pretrained file, which may be an official one."""
        if self.init_cfg is None:
            super().init_weights()
        else:
            self.load_pretrained()
        self._init_parts()

    def _fitted(self, state, path):
        """Convert the weights of a backbone or model, with stock or official names, and of any window size."""
        state = part_of(state, 'backbone') or state
        if official.is_official(state):
            state, _ = official.convert(state)
        own = self.state_dict()
        state = {
            name: value
            for name, value in state.items()
            if (name in own or not self.not_in_files(name)) and not name.endswith(COMPUTED)
        }
        for name in [name for name in state if name.endswith('relative_position_bias_table') and name in own]:
            sides = ((math.isqrt(len(table)) + 1) // 2 for table in (state[name], own[name]))
            state[name] = resize_relative_positions(state[name], *((side, side) for side in sides))
        return state

    def not_in_files(self, name: str) -> bool:
        """Say whether a file may lack or have a weight: of a classifier, of output norms, or a computed buffer."""
        return name.startswith(('head.', 'norm')) or name.endswith(COMPUTED)


def _check_stages(
    depths, num_heads, strides, out_indices, frozen_stages, embed_dims, mlp_ratio, patch_size, pretrain_img_size, **_
):
    count = len(depths)
    for key, values in dict(num_heads=num_heads, strides=strides).items():
        if len(values) < count:  # further values are ignored, as in the stock class
            raise UserError(
                f'{key}={values} has {len(values)} values for the {count} stages of depths={depths}: give one for each.'
            )
    for key, last, most in (('out_indices', out_indices[-1], count - 1), ('frozen_stages', frozen_stages, count)):
        if last > most:
            raise UserError(f'{key} goes to {last}, but depths={depths} are {count} stages: choose up to {most}.')
    if strides[0] != patch_size:
        raise UserError(f'strides={strides} must begin with patch_size={patch_size}: patches do not overlap.')
    for i, heads in enumerate(num_heads[:count]):
        check_heads(embed_dims * 2**i, heads)
    if int(embed_dims * mlp_ratio) < 1:
        raise UserError(f'mlp_ratio={mlp_ratio} leaves no channel of embed_dims={embed_dims}: give a larger one.')
    check_patches(pretrain_img_size, patch_size)


for _library in ('mmseg', 'mmdet'):
    twin_of(f'{_library}.models.backbones.swin.SwinTransformer')(backbone_twin(SwinTransformer))
