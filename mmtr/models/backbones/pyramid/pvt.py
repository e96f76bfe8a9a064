"""PVT and PVTv2 of mmdet with fused attention, token reduction and PEFT."""

import math
from contextlib import suppress
from typing import Any, Optional

from mmdet.models.backbones import pvt
from mmengine.model import ModuleList
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import ATTN_BACKEND, Initialisation
from mmtr.registry import MODELS
from mmtr.settings import Flag, Listed, Maybe, Whole

from .backbone import STAGES, PyramidBackbone, arguments, check_stages
from .mit import mix_layer

#: Arguments that are lists with a value for each stage.
LISTS = ('num_layers', 'patch_sizes', 'strides', 'paddings', 'sr_ratios', 'mlp_ratios')


class OfFile(Initialisation):
    """Declaration of an ``init_cfg`` that names a checkpoint; mmdet's configs of PVT leave its ``type`` out."""

    def __init__(self):
        super().__init__(of_file=True)

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        untyped = isinstance(value, dict) and 'type' not in value
        return super().take(dict(value, type='Pretrained') if untyped else value)


class PVTBackbone(PyramidBackbone):
    """Mixin of both versions; ``pretrained`` files may be official ones or have mmdet's names."""

    inherited = {
        **arguments(
            num_stages=Whole(1, 8),
            num_layers=Listed(Whole(1, 256), **STAGES),
            mlp_ratios=Listed(Whole(1, 64), **STAGES),
            paddings=Listed(Whole(0, 256), **STAGES),
            use_conv_ffn=Flag(),
            norm_after_stage=Flag(),
            convert_weights=Flag(),
        ),
        'init_cfg': Maybe(OfFile()),
    }

    loads_whole_files = True

    def _build(self, given, **ours):
        """Check the arguments of the stock class against each other, and build it and what is ``ours``."""
        check_stages(
            given['num_stages'],
            widths=[given['embed_dims'] * heads for heads in given['num_heads']],
            **{key: given[key] for key in ('out_indices', 'pretrained', 'init_cfg', 'num_heads')},
            **{key: given[key] for key in LISTS if key in given},
        )
        if given.get('use_abs_pos_embed') and min(given['pretrain_img_size']) < math.prod(given['patch_sizes']):
            raise UserError(
                f'pretrain_img_size={given["pretrain_img_size"]} is smaller than the {math.prod(given["patch_sizes"])} '
                'pixels between the positions of the last stage: give the pixels of a training image.'
            )
        super().__init__(**given)
        self.make_tunable(**ours)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(
            ModuleList([embed, ModuleList(_twin(block, attn_backend) for block in blocks), norm])
            for embed, blocks, norm in self.layers
        )

    @property
    def blocks(self) -> list[list[nn.Module]]:
        """The blocks of each stage, without the position embedding that its list begins with in the first version."""
        return [[block for block in blocks if not _is_table(block)] for _, blocks, _ in self.layers]

    @property
    def embeddings(self) -> list[nn.Module]:
        """The patch embedding of each stage."""
        return [embed for embed, _, _ in self.layers]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Extract feature maps from images, see ``PyramidBackbone``."""
        return [out.contiguous() for out in super().forward(x)]

    def _embed(self, i, x):
        embed, blocks, _ = self.layers[i]
        x, grid = embed(x)
        return (blocks[0](x, grid) if _is_table(blocks[0]) else x), grid

    def _norm(self, i, x):
        return self.layers[i][2](x)

    @property
    def pretrained_file(self) -> Optional[str]:
        """The path of the checkpoint that ``init_weights`` loads; None: weights are initialised at random."""
        return None if self.init_cfg is None else self.init_cfg.get('checkpoint')

    def _fitted(self, state, path):
        """Convert official names; a file that has neither these nor mmdet's is compared as it is."""
        with suppress(KeyError, ValueError, IndexError):
            return pvt.pvt_convert(state) if self.convert_weights else state
        return state


def _is_table(module):
    return isinstance(module, pvt.AbsolutePositionEmbedding)


def _twin(module, attn_backend):
    return module if _is_table(module) else mix_layer(module, attn_backend)


@MODELS.register_module()
class PyramidVisionTransformer(PVTBackbone, pvt.PyramidVisionTransformer):
    """mmdet's ``PyramidVisionTransformer`` (PVT) with three more arguments; weights and outputs are mmdet's.

    Args:
        token_reduction, peft, attn_backend: See ``MixVisionTransformer``.
        args, kwargs: mmdet's; ``convert_weights`` says whether a pretrained file may be an official one.

    Raises:
        UserError: See ``MixVisionTransformer``.
    """

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend)


@MODELS.register_module()
class PyramidVisionTransformerV2(PVTBackbone, pvt.PyramidVisionTransformerV2):
    """mmdet's ``PyramidVisionTransformerV2`` (PVTv2): see ``PyramidVisionTransformer``."""

    inherited = {**PVTBackbone.inherited, 'num_stages': Whole(4, 4)}
    decided = ('patch_sizes', 'paddings', 'use_abs_pos_embed', 'norm_after_stage', 'use_conv_ffn')

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        self._build(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend)
