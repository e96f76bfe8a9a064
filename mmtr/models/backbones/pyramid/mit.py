"""SegFormer's MixVisionTransformer of mmseg with fused attention, token reduction and PEFT."""

from typing import Optional

from mmengine.model import ModuleList
from mmseg.models.backbones import mit
from torch import nn

from mmtr.models.backbones.common.arguments import ATTN_BACKEND
from mmtr.models.backbones.common.twins import backbone_twin, share, twin_of
from mmtr.registry import MODELS
from mmtr.settings import Listed, Whole

from .backbone import STAGES, PyramidBackbone, arguments, check_stages
from .layer import PyramidLayer, mix_ffn, pyramid_attention


class MixLayer(PyramidLayer, mit.TransformerEncoderLayer):
    """mmseg's MiT layer on ``Tokens``; made by ``mix_layer``."""


def mix_layer(stock: nn.Module, attn_backend: str) -> MixLayer:
    """Return the twin of a layer of mmseg's MiT or mmdet's PVT, which are alike."""
    twin = share(MixLayer, stock)
    twin.attn, twin.ffn = pyramid_attention(stock.attn, attn_backend), mix_ffn(stock.ffn)
    return twin


@MODELS.register_module()
class MixVisionTransformer(PyramidBackbone, mit.MixVisionTransformer):
    """mmseg's ``MixVisionTransformer`` (SegFormer) with three more arguments; weights and outputs are mmseg's.

    Args:
        token_reduction: ``dict(type=..., stage=..., **settings)`` of a token reducer; None: no reduction. Tokens are
            reduced in one stage, counted from 1 (None: the one with most blocks), and restored before the next. The
            layers of the reducer are the blocks of that stage, counted from 0.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
            Its layers are the blocks of all stages, counted from 0.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, its stage, the PEFT or one of their settings does not exist; a setting has a value that
            is not allowed; the attention backend cannot run here; at the first forward: an image is too small.
    """

    inherited = arguments(num_stages=Whole(1, 8), num_layers=Listed(Whole(1, 256), **STAGES), mlp_ratio=Whole(1, 64))

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        check_stages(
            kwargs['num_stages'],
            widths=[kwargs['embed_dims'] * heads for heads in kwargs['num_heads']],
            **{
                key: kwargs[key]
                for key in (
                    *('out_indices', 'pretrained', 'init_cfg', 'num_heads'),
                    *('num_layers', 'patch_sizes', 'strides', 'sr_ratios'),
                )
            },
        )
        super().__init__(*args, **kwargs)
        self.make_tunable(attn_backend, token_reduction, peft)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(
            ModuleList([embed, ModuleList(mix_layer(block, attn_backend) for block in blocks), norm])
            for embed, blocks, norm in self.layers
        )

    @property
    def blocks(self) -> list[nn.ModuleList]:
        """The blocks of each stage."""
        return [blocks for _, blocks, _ in self.layers]

    @property
    def embeddings(self) -> list[nn.Module]:
        """The patch embedding of each stage."""
        return [embed for embed, _, _ in self.layers]

    def _norm(self, i, x):
        return self.layers[i][2](x)


twin_of(mit.MixVisionTransformer)(backbone_twin(MixVisionTransformer))
