"""mmpretrain's SwinTransformerV2, with fused attention and token reduction: the backbone."""

from collections.abc import Sequence
from typing import Optional

from mmengine.model import ModuleList
from mmpretrain.models.backbones import swin_transformer_v2
from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    CHANNELS,
    HEADS,
    NORM,
    PATCH,
    STOCK,
    check_heads,
    check_patches,
)
from mmtr.models.backbones.common.embedding import embedded_grid
from mmtr.models.backbones.swin.stages import SwinStages
from mmtr.registry import MODELS
from mmtr.settings import Flag, Listed, Maybe, OneOrMore, Pair, Whole
from mmtr.weights.fit import part_of

from .backbone import Arch
from .swin_v2_layer import reducible_stage

#: Suffixes of the names of buffers that the model computes itself.
COMPUTED = ('relative_coords_table', 'relative_position_index')
#: Number of values in a list with one for each stage.
_STAGES = dict(least=1, most=8)


@MODELS.register_module()
class SwinTransformerV2(SwinStages, swin_transformer_v2.SwinTransformerV2):
    """mmpretrain's ``SwinTransformerV2``: same arguments, weights and outputs, and three keys more.

    Args:
        token_reduction: ``dict(type=..., stage=..., **settings)`` of a token reducer, see ``mmtr.SwinTransformer``.
        peft, attn_backend: See ``mmtr.SwinTransformer``.
        args, kwargs: mmpretrain's.

    Raises:
        UserError: The reducer, its stage, the PEFT or one of their settings does not exist; a setting has a value that
            is not allowed; the blocks of a stage have different windows; the attention backend cannot run here; at a
            forward, a stage has fewer tokens than its window, and ``pad_small_map`` is not set.
    """

    inherited = dict(
        STOCK,
        arch=Arch(
            swin_transformer_v2.SwinTransformerV2.arch_zoo,
            embed_dims=CHANNELS,
            depths=Listed(Whole(1, 256), **_STAGES),
            num_heads=Listed(HEADS, **_STAGES),
            extra_norm_every_n_blocks=Whole(0, 256),
        ),
        patch_size=Pair(PATCH, '(height, width)'),
        # The coordinates of a window of one token would be 0 / 0.
        window_size=OneOrMore(Whole(2, 256), **_STAGES),
        pretrained_window_sizes=Listed(Whole(0, 256), **_STAGES),
        out_indices=Listed(Whole(0, 7), rising=True, **_STAGES),
        frozen_stages=Whole(-1, 7),
        norm_cfg=Maybe(NORM),
        pad_small_map=Flag(),
    )

    loads_whole_files = True

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        arch = kwargs['arch']
        _check_stages(**dict(kwargs, arch=type(self).arch_zoo[arch] if isinstance(arch, str) else arch))
        super().__init__(*args, **kwargs)
        self.make_tunable(attn_backend, token_reduction, peft)

    def _make_reducible(self, attn_backend):
        self.stages = ModuleList(reducible_stage(stage, attn_backend) for stage in self.stages)

    @property
    def patch_size(self) -> int:
        """Rows of pixels of a patch of the first stage."""
        return self.patch_embed.projection.kernel_size[0]

    @property
    def img_size(self) -> tuple[int, int]:
        """The size (height, width) in pixels of training images."""
        return tuple(self.patch_embed.init_input_size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Extract feature maps from images.

        Args:
            x: (B, channels, height, width) normalised images.

        Returns:
            Tuple of (B, C, H, W), one for each of ``out_indices``.
        """
        x, grid = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + swin_transformer_v2.resize_pos_embed(
                self.absolute_pos_embed, self.patch_resolution, grid, self.interpolate_mode, self.num_extra_tokens
            )
        x = self.drop_after_pos(x)
        outs, first = [], 0
        for i, stage in enumerate(self.stages):
            x, grid = stage(x, grid, self.reducer_of(i)[0], self.peft, first)
            if i in self.out_indices:
                outs.append(getattr(self, f'norm{i}')(x).transpose(1, 2).unflatten(2, grid).contiguous())
            first += len(stage.blocks)
        return tuple(outs)

    def stage_grids(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (rows, columns) of tokens in each stage for an image of ``shape`` (height, width) in pixels."""
        grids = [embedded_grid(self.patch_embed.projection, self.patch_embed.adaptive_padding, shape)]
        for stage in self.stages:
            down = stage.downsample
            grids.append(embedded_grid(down.sampler, down.adaptive_padding, grids[-1]) if down else grids[-1])
        return grids[1:]

    def _fitted(self, state, path):
        """Keep the weights of a backbone or model, for any window size, and resize its positions as stock."""
        state = part_of(state, 'backbone') or state
        own = self.state_dict()
        state = {
            name: value
            for name, value in state.items()
            if (name in own or not self.not_in_files(name)) and not name.endswith(COMPUTED)
        }
        if self.use_abs_pos_embed:
            self._prepare_abs_pos_embed(state, '')
        return state

    def not_in_files(self, name: str) -> bool:
        """Say whether a file may lack or have a weight: of a classifier, of output norms, or a computed buffer."""
        return name.startswith(('head.', 'norm')) or name.endswith(COMPUTED)


def _check_stages(
    arch, window_size, pretrained_window_sizes, stage_cfgs, out_indices, frozen_stages, patch_size, img_size, **_
):
    depths, count = arch['depths'], len(arch['depths'])
    # Further windows of pretraining are ignored, as in stock, whose default has four.
    each = dict(num_heads=arch['num_heads'], pretrained_window_sizes=pretrained_window_sizes[:count])
    lists = dict(window_size=window_size, stage_cfgs=stage_cfgs)
    each.update({key: value for key, value in lists.items() if isinstance(value, Sequence)})
    for key, values in each.items():
        if len(values) != count:
            raise UserError(
                f'{key}={values} has {len(values)} values for the {count} stages of depths={depths}: give one for each.'
            )
    if 1 in pretrained_window_sizes:
        raise UserError(
            f'pretrained_window_sizes={pretrained_window_sizes} has a window of one token, by which no offset can be '
            'scaled: give 0, for window_size, or at least 2.'
        )
    for key, last in (('out_indices', out_indices[-1]), ('frozen_stages', frozen_stages)):
        if last >= count:
            raise UserError(f'{key} goes to {last}, but depths={depths} are {count} stages: choose up to {count - 1}.')
    for i, heads in enumerate(arch['num_heads']):
        check_heads(arch['embed_dims'] * 2**i, heads)
    check_patches(img_size, max(patch_size))
