"""DINOv3: a plain ViT with rotary position embedding, LayerScale and register tokens."""

import math
from typing import Optional

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmseg.models.utils import PatchEmbed
from torch import nn

from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    CHANNELS,
    DEPTH,
    FILE,
    HEADS,
    INIT,
    NORM,
    OUTPUTS,
    PATCH,
    PIXELS,
    check_heads,
    check_patches,
    check_start,
    drop_path_rates,
    which_layers,
)
from mmtr.models.backbones.common.feed_forward import FeedForward, SwiGLU
from mmtr.models.backbones.common.plain import OwnBackbone
from mmtr.models.backbones.common.rotary_layer import RotaryEncoderLayer
from mmtr.ops.rotary import rotary_table
from mmtr.registry import MODELS
from mmtr.settings import PROBABILITY, Choice, Flag, Maybe, Number, OneOrMore, Whole


@MODELS.register_module()
class DINOv3(OwnBackbone, BaseModule):
    """DINOv3 (Siméoni et al., arXiv 2508.10104, Sec. 3.2).

    S, S+, B, L and H+ have 384, 384, 768, 1024 and 1280 channels, 12 layers (L: 24, H+: 32), and one head per 64
    channels; the FFN of S+ and H+ is ``swiglu``. The final norm is applied to every output. Images that are no
    multiple of the patch are padded at the right and the bottom, where the release cuts them; that moves the
    positions, which span the image.

    Args:
        img_size: Size in pixels of training images, one number or (height, width); any other size works.
        patch_size: Side of a patch in pixels.
        in_channels: Number of channels of an image.
        embed_dims: Number of channels of the tokens, C.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        ffn: ``mlp``, with GELU; or ``swiglu``, gated.
        hidden: Number of hidden channels of the FFN: of the gate, and of the value, in ``swiglu``. None: 4 C.
        num_registers: Number of register tokens, which stand behind the class token.
        layer_scale_init_value: Initial value of LayerScale.
        rope_base: Base of the angles of the rotary embedding.
        rope_rescale: Largest factor of the positions in training: each forward pass draws one, log-uniformly from
            1 / rope_rescale to rope_rescale; 2 in the release's training. None: there is none.
        out_indices: Layers whose outputs are returned, counted from 0; -1 is the last.
        drop_path_rate: Drop path probability of the last layer, rising linearly from 0 in the first; or a list with
            one for each layer.
        norm_cfg: Config of every norm.
        with_cp: Whether activation checkpointing recomputes layers in the backward pass.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        pretrained: Checkpoint written by ``tools/convert_checkpoint.py --source dinov3``; the patch embedding is
            resized to this model.
        init_cfg: mmengine's.

    Raises:
        UserError: A setting has a value that is not allowed; ``pretrained`` does not fit; at the first forward: an
            image is smaller than a patch.
    """

    norm_every_output = True

    def __init__(
        self,
        img_size: PIXELS = 512,
        patch_size: PATCH = 16,
        in_channels: Whole(1, 1024) = 3,
        embed_dims: CHANNELS = 768,
        num_layers: DEPTH = 12,
        num_heads: HEADS = 12,
        ffn: Choice('mlp', 'swiglu') = 'mlp',
        hidden: Maybe(Whole(1, 2**20)) = None,
        num_registers: Whole(0, 1024) = 4,
        layer_scale_init_value: Number(above=0, most=1000) = 1e-5,
        rope_base: Number(above=1, most=1e9) = 100.0,
        rope_rescale: Maybe(Number(above=1, most=1000)) = None,
        out_indices: OUTPUTS = -1,
        drop_path_rate: OneOrMore(PROBABILITY) = 0.0,
        norm_cfg: Maybe(NORM) = None,
        with_cp: Flag() = False,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        pretrained: FILE = None,
        init_cfg: INIT = None,
    ):
        check_start(pretrained, init_cfg)
        if pretrained is not None:
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg)
        check_heads(embed_dims, num_heads, 4)  # rotary embedding rotates pairs of channels, by row and by column
        check_patches(img_size, patch_size)
        self.out_indices = which_layers('out_indices', out_indices, num_layers)
        norm_cfg = dict(type='LN', eps=1e-5) if norm_cfg is None else norm_cfg
        self.rope_base, self.rope_rescale, self.head_dims = rope_base, rope_rescale, embed_dims // num_heads
        self.img_size, self.patch_size, self.num_registers = img_size, patch_size, num_registers
        self.patch_embed = PatchEmbed(
            in_channels, embed_dims, kernel_size=patch_size, stride=patch_size, padding='corner'
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, embed_dims))
        self.layers = ModuleList(
            RotaryEncoderLayer(
                embed_dims,
                num_heads,
                4 * embed_dims if hidden is None else hidden,
                norm_cfg,
                ffn=SwiGLU if ffn == 'swiglu' else FeedForward,
                drop_path=rate,
                backend=attn_backend,
                layer_scale=layer_scale_init_value,
                with_cp=with_cp,
            )
            for rate in drop_path_rates(drop_path_rate, num_layers)
        )
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1]
        self.make_tunable(attn_backend, token_reduction, peft)

    def _init_as_published(self):
        super()._init_as_published()
        for tokens in (self.cls_token, *([self.register_tokens] if self.num_registers else [])):
            nn.init.normal_(tokens, std=0.02)

    def _embed(self, inputs):
        tokens = super()._embed(inputs)
        # Coordinates from -1 to 1 times 2 pi; drawn here, so that all layers and their recomputation see the same.
        span = 4 * math.pi
        if self.training and self.rope_rescale is not None:
            span = span * self.rope_rescale ** (2 * torch.rand((), device=inputs.device) - 1)
        table = rotary_table(tokens.grid, self.head_dims, span, device=inputs.device, base=self.rope_base, centred=True)
        return tokens.replace(rotary=(table,))

    def _add_positions(self, x, grid):
        if not self.num_registers:
            return x
        return torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], 1)

    def _final_norm(self, x):
        return self.norm(x)
