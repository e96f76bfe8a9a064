"""DINOv2: a plain ViT with LayerScale, register tokens, and its own interpolation of position embeddings."""

from typing import Optional

import torch
from mmcv.cnn.bricks.scale import LayerScale
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import NORM, OUTPUTS, PATCH, PIXELS
from mmtr.models.backbones.common.twins import share
from mmtr.ops.resize import resize_positions
from mmtr.registry import MODELS
from mmtr.settings import SHARE, Flag, Maybe, Number, Whole

from .vit import MultiheadAttention, VisionTransformer


class ScaledAttention(MultiheadAttention):
    """Attention with LayerScale after the output projection; made by ``add_layer_scale``."""

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection and LayerScale."""
        return self.gamma1(super().project(x))


def add_layer_scale(layer: nn.Module, init_value: float) -> None:
    """Add LayerScale to attention and FFN of a layer, and drop path to attention, in place.

    Args:
        layer: Layer of a ``VisionTransformer``.
        init_value: Initial value of LayerScale.
    """
    layer.attn = share(ScaledAttention, layer.attn)
    layer.attn.gamma1 = LayerScale(layer.attn.embed_dims, scale=init_value)
    layer.ffn.gamma2 = LayerScale(layer.ffn.embed_dims, scale=init_value)
    # mmseg's layer has drop path in the FFN only. The module has no state: both are dropped independently.
    layer.attn.dropout_layer = layer.ffn.dropout_layer


@MODELS.register_module()
class DINOv2(VisionTransformer):
    """DINOv2 (Oquab et al., arXiv 2304.07193), with registers: Darcet et al., arXiv 2309.16588.

    Ti (ours), S, B and L have 192, 384, 768 and 1024 channels, 12 layers (L: 24), and one head per 64 channels.
    The final norm is applied to every output. Giant, with SwiGLU, is not supported.

    Args:
        img_size: Size in pixels that the position embedding is for, one number or (height, width); for other sizes it
            is interpolated.
        patch_size: Side of a patch in pixels.
        num_registers: Number of register tokens, 0 or 4 in the released models, between class token and patch tokens;
            they have no position and are never reduced.
        layer_scale_init_value: Initial value of LayerScale; that of the released models was 1e-5.
        interpolate_antialias, interpolate_offset: Interpolation of the position embedding, see
            ``mmtr.ops.resize.resize_positions``. None: as in the released models, False and 0.1 without registers,
            True and 0 with them.
        out_indices: Layers whose outputs are returned, counted from 0; -1 is the last.
        norm_cfg: Config of every norm.
        patch_bias, final_norm: As in mmseg's ViT.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        kwargs: ``VisionTransformer``'s. ``pretrained`` is a checkpoint written by ``tools/convert_checkpoint.py
            --source dinov2``; patch embedding and position embedding are resized to this model.

    Raises:
        UserError: A setting has a value that is not allowed; ``pretrained`` does not fit; see ``VisionTransformer``.
    """

    norm_every_output = True

    def __init__(
        self,
        img_size: PIXELS = 518,
        patch_size: PATCH = 14,
        num_registers: Whole(0, 1024) = 0,
        layer_scale_init_value: Number(above=0, most=1000) = 1e-5,
        interpolate_antialias: Maybe(Flag()) = None,
        interpolate_offset: Maybe(SHARE) = None,
        out_indices: OUTPUTS = -1,
        norm_cfg: Maybe(NORM) = None,
        patch_bias: Flag() = True,
        final_norm: Flag() = True,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        **kwargs,
    ):
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            patch_bias=patch_bias,
            final_norm=final_norm,
            out_indices=out_indices,
            norm_cfg=dict(type='LN', eps=1e-6) if norm_cfg is None else norm_cfg,
            **kwargs,
        )
        if num_registers and not self.with_cls_token:
            raise UserError(
                f'num_registers={num_registers} needs the class token, which registers stand behind: set '
                'with_cls_token=True, or num_registers=0.'
            )
        self.num_registers = num_registers
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, self.cls_token.shape[-1]))
        self.antialias = num_registers > 0 if interpolate_antialias is None else interpolate_antialias
        self.offset = (0.0 if num_registers else 0.1) if interpolate_offset is None else interpolate_offset
        for layer in self.layers:
            add_layer_scale(layer, layer_scale_init_value)
        self.set_token_reduction(token_reduction)
        self.set_peft(peft)

    def init_weights(self) -> None:
        """Load ``pretrained``; without it, initialise as mmseg's ViT, registers as the class token."""
        if self.pretrained_file:
            self.load_pretrained()
            self._init_parts()
            return
        super().init_weights()
        if self.num_registers:
            nn.init.trunc_normal_(self.register_tokens, std=0.02)

    def _pos_embeding(self, patched_img, hw_shape, pos_embed):
        # mmseg's compares the number of patches only, and does not resize from 4x9 to 6x6.
        return self.drop_after_pos(patched_img + self._resize_positions(pos_embed, self._training_grid(), hw_shape))

    def _resize_positions(self, table, old, new):
        return resize_positions(table, old, new, 1, self.antialias, self.offset)

    def _add_positions(self, x, grid):
        x = super()._add_positions(x, grid)
        if not self.num_registers:
            return x
        return torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], 1)
