"""mmpretrain's VisionTransformer and its relatives, with fused attention and token reduction."""

import math
from collections.abc import Iterable
from typing import Any, Optional

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import ModuleList
from mmpretrain.models.backbones import deit, deit3, vision_transformer

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    CHANNELS,
    DEPTH,
    HEADS,
    OUTPUTS,
    PATCH,
    STOCK,
    check_heads,
    check_patches,
    which_layers,
)
from mmtr.models.backbones.common.embedding import embedded_grid
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.ops.dropping import fuse_tokens
from mmtr.registry import MODELS
from mmtr.settings import Choice, Flag, Number, Pair, Setting, Unfit, Whole

from .layer import reducible

#: What each ``out_type`` is made of, see ``BackboneInfo``.
OUT_TYPES = dict(cls_token='class_token', avg_featmap='mean', avg_all='mean', featmap='patches', raw='patches')
#: Keys of the dict ``arch`` of every plain ViT.
WIDTHS = dict(embed_dims=CHANNELS, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=Whole(1, 2**16))


class Arch(Setting):
    """mmpretrain's ``arch``: one of its names, or a dict of widths and depths.

    Args:
        known: The names.
        keys: What each value of the dict may be.
    """

    def __init__(self, known: Iterable[str], **keys: Setting):
        self.known, self._keys = tuple(known), keys

    def words(self, depth: Optional[int] = None) -> str:
        """See ``Setting``."""
        return f'one of {", ".join(self.known)}, or dict({", ".join(f"{key}=..." for key in self._keys)})'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """See ``Setting``."""
        if isinstance(value, str):
            if value.lower() not in self.known:
                raise Unfit
            return value.lower()
        if not isinstance(value, dict) or value.keys() != self._keys.keys():
            raise Unfit
        return {key: each.take(value[key]) for key, each in self._keys.items()}


def arguments(stock: type, **others: Setting) -> dict[str, Setting]:
    """Return what the arguments of a stock class may be."""
    return dict(
        STOCK,
        arch=Arch(stock.arch_zoo, **WIDTHS),
        patch_size=Pair(PATCH, '(height, width)'),
        out_indices=OUTPUTS,
        out_type=Choice(*OUT_TYPES),
        **others,
    )


class MMPretrainBackbone(ReducibleBackbone):
    """Mixin of mmpretrain's ViTs: what differs from those of mmseg, once for all.

    What the head reads, ``out_type``, decides what is given back: nothing for ``cls_token``, for ``avg_featmap`` and
    ``avg_all`` the mean of what is left, weighted by how many patches each token stands for.
    """

    final_norm_name = 'ln1'
    #: Of what the channels of a head must be a multiple.
    head_multiple = 1

    def _build(self, given):
        """Build the stock backbone, whose arguments are checked, then what is ours."""
        own = {key: given.pop(key) for key in ('attn_backend', 'token_reduction', 'peft')}
        out_type, zoo = given['out_type'], type(self).arch_zoo
        settings = zoo[given['arch']] if isinstance(given['arch'], str) else given['arch']
        check_heads(settings['embed_dims'], settings['num_heads'], self.head_multiple)
        check_patches(given['img_size'], max(given['patch_size']))
        given['out_indices'] = which_layers('out_indices', given['out_indices'], settings['num_layers'])
        if out_type in ('cls_token', 'avg_all') and not given.get('with_cls_token', True):
            raise UserError(f'out_type={out_type!r} reads the class token: set with_cls_token=True.')
        if given.get('frozen_stages', -1) > settings['num_layers']:
            raise UserError(
                f'frozen_stages={given["frozen_stages"]} is more than the {settings["num_layers"]} layers of this '
                'backbone: give at most as many.'
            )
        # mmpretrain's norm of a mean is there for one out_type alone.
        super().__init__(**dict(given, out_type='avg_featmap' if out_type == 'avg_all' else out_type))
        self.out_type = out_type
        self.make_tunable(**own)

    def make_tunable(self, *args, **kwargs) -> None:
        """See ``TunableBackbone``."""
        super().make_tunable(*args, **kwargs)
        for module in self.layers.modules():
            if isinstance(module, DropPath):  # a number of NumPy would break the graph of torch.compile
                module.drop_prob = float(module.drop_prob)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    @property
    def num_prefix(self) -> int:
        """Number of tokens before those of the patches."""
        return self.num_extra_tokens

    @property
    def output(self) -> str:
        """What the outputs are made of, see ``BackboneInfo``."""
        return OUT_TYPES[self.out_type]

    @property
    def patch_size(self) -> int:
        """Rows of pixels of a patch."""
        return self.patch_embed.projection.kernel_size[0]

    def _training_grid(self):
        return tuple(self.patch_resolution)

    def _grid_of(self, shape):
        return embedded_grid(self.patch_embed.projection, self.patch_embed.adaptive_padding, shape)

    def _prefix(self):
        return [] if self.cls_token is None else [self.cls_token]

    def _with_prefix(self, x):
        return torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self._prefix()), x], 1)

    def _sequence(self, x, grid):
        return self.pre_norm(self._add_positions(self._with_prefix(x), grid))

    def _add_positions(self, x, grid):
        table = self.resize_pos_embed(
            self.pos_embed, self._training_grid(), grid, self.interpolate_mode, self.pos_embed.shape[1] - self._patches
        )
        return self.drop_after_pos(x + table)

    @property
    def _patches(self):
        return math.prod(self._training_grid())

    def _final_norm(self, x):
        return self.ln1(x) if self.final_norm else x

    def _output(self, tokens):
        if self.out_type == 'featmap':
            return super()._output(tokens)
        if self.output != 'mean':
            return self._format_output(tokens.x, tokens.grid)
        x, size = tokens.patches, tokens.size
        if self.out_type == 'avg_all':
            x = tokens.x
            size = None if size is None else torch.cat([size.new_ones(size.shape[0], tokens.num_prefix), size], 1)
        return self.ln2(x.mean(1) if size is None else fuse_tokens(x, size).squeeze(1))

    def _with_fitted_positions(self, state, path):
        positions = state.get('pos_embed')
        if positions is not None and self.pos_embed is not None:
            own, found = self.pos_embed.shape[1], positions.shape[1]
            patches = found - own + self._patches
            # mmpretrain leaves out the position of a class token that this backbone has not.
            as_they_are = found in (own, own + (not self.with_cls_token))
            if not as_they_are and math.isqrt(patches) ** 2 != patches:
                raise UserError(
                    f"The position table of '{path}' is of {patches} patches, which is no square, so it cannot be "
                    f'resized to {self._training_grid()}.'
                )
            self._prepare_pos_embed(state, '')
        return state

    def not_in_files(self, name: str) -> bool:
        """See ``TunableBackbone``; the norm of a mean is not in files of pretraining, too."""
        return super().not_in_files(name) or name.startswith('ln2.')


@MODELS.register_module()
class ClsVisionTransformer(MMPretrainBackbone, vision_transformer.VisionTransformer):
    """mmpretrain's ``VisionTransformer``: same arguments, weights and outputs, and three keys more.

    Args:
        out_type: mmpretrain's, or ``avg_all``: as ``avg_featmap``, but of class token and patches.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: the stock model.
        peft: ``dict(type=..., **settings)`` of what is trained beside frozen weights; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmpretrain's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist or cannot work; the backend
            cannot run here; at the first forward, an image is smaller than a patch.
    """

    inherited = arguments(
        vision_transformer.VisionTransformer,
        frozen_stages=Whole(-1, 256),
        layer_scale_init_value=Number(least=0, most=1000),
    )

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))


@MODELS.register_module()
class DeiT3(MMPretrainBackbone, deit3.DeiT3):
    """mmpretrain's ``DeiT3``: see ``ClsVisionTransformer``; it has no norm of a mean, so no ``avg_featmap``."""

    inherited = arguments(deit3.DeiT3, use_layer_scale=Flag())

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        if OUT_TYPES[kwargs['out_type']] == 'mean':
            raise UserError(
                f"out_type={kwargs['out_type']!r} needs a norm that mmpretrain's DeiT3 has not: choose cls_token, "
                'featmap or raw.'
            )
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _sequence(self, x, grid):
        # The class token has no position.
        return self._with_prefix(self._add_positions(x, grid))


@MODELS.register_module()
class DistilledVisionTransformer(MMPretrainBackbone, deit.DistilledVisionTransformer):
    """mmpretrain's ``DistilledVisionTransformer``, with a class and a distillation token: see
    ``ClsVisionTransformer``."""

    inherited = arguments(
        deit.DistilledVisionTransformer, frozen_stages=Whole(-1, 256), layer_scale_init_value=Number(least=0, most=1000)
    )

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        for key, value, why in (
            ('with_cls_token', True, 'has a class token'),
            ('pre_norm', False, 'has no norm before its layers'),
        ):
            if kwargs[key] is not value:
                raise UserError(f"{key}={kwargs[key]}: mmpretrain's DistilledVisionTransformer {why}, so leave it out.")
        del kwargs['with_cls_token']  # which stock sets itself
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _prefix(self):
        return [self.cls_token, self.dist_token]
