"""ViTDet: a plain ViT with windows in most layers and decomposed relative positions."""

from collections.abc import Sequence
from typing import Optional

import torch
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
from mmtr.ops.resize import resize_differences, resize_positions
from mmtr.registry import MODELS
from mmtr.settings import PROBABILITY, Flag, Listed, Maybe, OneOrMore, Whole

from .layer import ViTDetLayer


@MODELS.register_module()
class ViTDet(OwnBackbone, BaseModule):
    """ViTDet's backbone (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", Sec. 3).

    B, L and H have 768, 1024 and 1280 channels, 12, 24 and 32 layers, and 12, 16 and 16 heads. SAM's image encoder is
    this backbone with a neck. There is no class token, and no norm after the last layer. Attention adds relative
    positions to the logits: q_i Rh[r_i - r_j] + q_i Rw[c_i - c_j], with q unscaled. Once tokens are reduced, those that
    are left attend to all, by the differences of their rows and columns.

    Parameters have the names of detectron2's release, ``norm1``, ``attn.qkv``, ``attn.proj``, ``attn.rel_pos_h``,
    ``attn.rel_pos_w`` and ``norm2``, but for ``layers`` (there ``blocks``), ``ffn`` (``mlp``) and
    ``patch_embed.projection`` (``patch_embed.proj``).

    Args:
        img_size: Size in pixels of training images, one number or (height, width), for which global layers have their
            tables of relative positions; for other sizes they are resized linearly.
        pretrain_img_size: Size in pixels that the position table is for; for other sizes it is resized bicubically.
        patch_size: Side of a patch in pixels.
        in_channels: Number of channels of an image.
        embed_dims: Number of channels of the tokens, C.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        mlp_ratio: Channels inside the FFN, as a multiple of C, rounded down.
        out_indices: Layers whose outputs are returned, counted from 0; -1 is the last.
        window_size: Side of a window, in patches. If the grid is no multiple of it, it is padded with zeros after the
            norm, to which tokens attend.
        global_attn_indexes: Layers with global attention, counted from 0; None: the last of each quarter of the
            layers. All others are windowed as long as no token is reduced.
        drop_path_rate: Drop path probability of the last layer, rising linearly from 0 in the first; or a list with
            one for each layer.
        norm_cfg: Config of every norm; None: LayerNorm with eps=1e-6.
        with_cp: Whether activation checkpointing recomputes layers in the backward pass.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        pretrained: Checkpoint written by ``tools/convert_checkpoint.py``, ``--source vitdet`` or ``sam``; patch
            embedding and all tables are resized to this model.
        init_cfg: mmengine's.

    Raises:
        UserError: A setting has a value that is not allowed; ``pretrained`` does not fit; at the first forward: an
            image is smaller than a patch.
    """

    with_cls_token = merges_apart = False

    def __init__(
        self,
        img_size: PIXELS = 1024,
        pretrain_img_size: PIXELS = 224,
        patch_size: PATCH = 16,
        in_channels: Whole(1, 1024) = 3,
        embed_dims: CHANNELS = 768,
        num_layers: DEPTH = 12,
        num_heads: HEADS = 12,
        mlp_ratio: RATIO = 4,
        out_indices: OUTPUTS = -1,
        window_size: Whole(1, 2**12) = 14,
        global_attn_indexes: Maybe(Listed(Whole(-256, 255))) = None,
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
        super().__init__(init_cfg if pretrained is None else dict(type='Pretrained', checkpoint=pretrained))
        check_heads(embed_dims, num_heads)
        check_patches(img_size, patch_size)
        if min(pretrain_img_size) < patch_size:
            raise UserError(
                f'pretrain_img_size={pretrain_img_size} is smaller than one patch of patch_size={patch_size}: give '
                'the pixels of an image of pretraining.'
            )
        hidden = int(embed_dims * mlp_ratio)
        if hidden < 1:
            raise UserError(f'mlp_ratio={mlp_ratio} leaves no channel of embed_dims={embed_dims}: give a larger one.')
        self.out_indices = which_layers('out_indices', out_indices, num_layers)
        whole = _ends_of_quarters(num_layers) if global_attn_indexes is None else global_attn_indexes
        whole = which_layers('global_attn_indexes', whole, num_layers)
        norm_cfg = dict(type='LN', eps=1e-6) if norm_cfg is None else norm_cfg

        self.img_size, self.pretrain_img_size, self.patch_size = img_size, pretrain_img_size, patch_size
        self.patch_embed = PatchEmbed(
            in_channels, embed_dims, kernel_size=patch_size, stride=patch_size, padding='corner'
        )
        rows, columns = self._table_grid()
        # The first entry is that of the class token of pretraining, as in the release.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, embed_dims))
        self.layers = ModuleList(
            ViTDetLayer(
                embed_dims,
                num_heads,
                hidden,
                norm_cfg,
                self._training_grid(),
                rate,
                None if i in whole else window_size,
                attn_backend,
                with_cp,
            )
            for i, rate in enumerate(drop_path_rates(drop_path_rate, num_layers))
        )
        self.make_tunable(attn_backend, token_reduction, peft)

    def _table_grid(self):
        return tuple(size // self.patch_size for size in self.pretrain_img_size)

    def _sequence(self, x, grid):
        return self._add_positions(x, grid)

    def _add_positions(self, x, grid):
        return x + self._resize_positions(self.pos_embed, self._table_grid(), grid)[:, 1:]

    def _resize_positions(self, table, old, new):
        return resize_positions(table, old, new, 1, antialias=False)

    def _final_norm(self, x):
        return x

    def _fitted(self, state, path):
        state, own = super()._fitted(state, path), self.state_dict()
        for name, table in state.items():
            if name.endswith(('.rel_pos_h', '.rel_pos_w')) and name in own:
                state[name] = resize_differences(table, (len(own[name]) + 1) // 2)
        return state


def _ends_of_quarters(depth: int) -> Sequence[int]:
    return sorted({-(-depth * part // 4) - 1 for part in (1, 2, 3, 4)})
