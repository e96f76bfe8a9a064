"""EVA-02: a plain ViT with rotary position embedding and SwiGLU."""

import math
from typing import Optional

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from mmseg.models.utils import PatchEmbed
from torch import nn

from mmtr.errors import UserError
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
    RATIO,
    check_heads,
    check_patches,
    check_start,
    drop_path_rates,
    which_layers,
)
from mmtr.models.backbones.common.plain import OwnBackbone
from mmtr.models.backbones.common.rotary_layer import RotaryEncoderLayer
from mmtr.ops.rotary import rotary_table
from mmtr.registry import MODELS
from mmtr.settings import PROBABILITY, Flag, Listed, Maybe, OneOrMore, Whole


@MODELS.register_module()
class EVA02(OwnBackbone, BaseModule):
    """EVA-02 (Fang et al., "EVA-02: A Visual Representation for Neon Genesis", Sec. 2.1).

    Ti, S, B and L have 192, 384, 768 and 1024 channels, 12 layers (L: 24), and one head per 64 channels.

    Args:
        img_size: Size in pixels that the position embedding is for, one number or (height, width); for other sizes it
            is interpolated.
        patch_size: Side of a patch in pixels.
        in_channels: Number of channels of an image.
        embed_dims: Number of channels of the tokens, C.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        mlp_ratio: Channels of the FFN's gate, as a multiple of C, rounded down.
        ffn_norm: Whether there is a norm inside the FFN: in B and L, not in Ti and S.
        attn_norm: Whether there is a norm before the output projection of attention: only in EVA-02-CLIP.
        out_indices: Layers whose outputs are returned, counted from 0; -1 is the last.
        with_cls_token: Whether layers see the class token. The parameter exists in any case.
        final_norm: Whether there is a norm after the last layer.
        drop_path_rate: Drop path probability of the last layer, rising linearly from 0 in the first; or a list with
            one for each layer.
        norm_cfg: Config of every norm.
        rope_grid: Rows, and columns, of the pretraining grid, to which rotary positions are scaled.
        window_size: Side, in patches, of the windows of ``window_layers`` (ViTDet).
        window_layers: Layers with windowed attention, counted from 0. Once tokens are reduced, their attention is
            global.
        with_cp: Whether activation checkpointing recomputes layers in the backward pass.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        pretrained: Checkpoint written by ``tools/convert_checkpoint.py --source eva02``; patch embedding and position
            embedding are resized to this model.
        init_cfg: mmengine's.

    Raises:
        UserError: A setting has a value that is not allowed; ``pretrained`` does not fit; at the first forward: an
            image is smaller than a patch.
    """

    def __init__(
        self,
        img_size: PIXELS = 224,
        patch_size: PATCH = 16,
        in_channels: Whole(1, 1024) = 3,
        embed_dims: CHANNELS = 768,
        num_layers: DEPTH = 12,
        num_heads: HEADS = 12,
        mlp_ratio: RATIO = 8 / 3,
        ffn_norm: Flag() = True,
        attn_norm: Flag() = False,
        out_indices: OUTPUTS = -1,
        with_cls_token: Flag() = True,
        final_norm: Flag() = True,
        drop_path_rate: OneOrMore(PROBABILITY) = 0.0,
        norm_cfg: Maybe(NORM) = None,
        rope_grid: Whole(1, 2**12) = 16,
        window_size: Maybe(Whole(1, 2**12)) = None,
        window_layers: Listed(Whole(-256, 255)) = (),
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
        if int(embed_dims * mlp_ratio) < 1:
            raise UserError(f'mlp_ratio={mlp_ratio} leaves no channel of embed_dims={embed_dims}: give a larger one.')
        self.out_indices = which_layers('out_indices', out_indices, num_layers)
        window_layers = which_layers('window_layers', window_layers, num_layers)
        _check_windows(window_size, window_layers, with_cls_token)
        rates = drop_path_rates(drop_path_rate, num_layers)
        norm_cfg = dict(type='LN', eps=1e-6) if norm_cfg is None else norm_cfg
        self.with_cls_token, self.rope_grid = with_cls_token, rope_grid
        self.head_dims = embed_dims // num_heads
        self.window_size = window_size if window_layers else None

        self.img_size, self.patch_size = img_size, patch_size
        rows, columns = self._training_grid()
        self.patch_embed = PatchEmbed(
            in_channels, embed_dims, kernel_size=patch_size, stride=patch_size, padding='corner'
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, embed_dims))
        self.layers = ModuleList(
            RotaryEncoderLayer(
                embed_dims,
                num_heads,
                int(embed_dims * mlp_ratio),
                norm_cfg,
                ffn_norm=ffn_norm,
                attn_norm=attn_norm,
                drop_path=rate,
                window=window_size if i in window_layers else None,
                backend=attn_backend,
                with_cp=with_cp,
            )
            for i, rate in enumerate(rates)
        )
        self.norm = build_norm_layer(norm_cfg, embed_dims)[1] if final_norm else nn.Identity()
        self.make_tunable(attn_backend, token_reduction, peft)

    def _init_as_published(self):
        super()._init_as_published()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            for i, layer in enumerate(self.layers, 1):
                layer.attn.proj.weight.div_(math.sqrt(2 * i))
                layer.ffn.fc2.weight.div_(math.sqrt(2 * i))

    def _embed(self, inputs):
        tokens = super()._embed(inputs)
        windows = (None,) if self.window_size is None else (None, self.window_size)
        return tokens.replace(
            rotary=tuple(
                rotary_table(tokens.grid, self.head_dims, self.rope_grid, window, tokens.x.device) for window in windows
            )
        )

    def _add_positions(self, x, grid):
        return x + self._resize_positions(self.pos_embed, self._training_grid(), grid)

    def _final_norm(self, x):
        return self.norm(x)


def _check_windows(size, layers, with_cls_token):
    if not layers:
        return
    if size is None:
        raise UserError('window_size=None must be the side of a window in patches, since window_layers are given.')
    if with_cls_token:
        raise UserError(
            'window_layers cannot work with the class token, which is in no window: '
            'set with_cls_token=False, as ViTDet.'
        )
