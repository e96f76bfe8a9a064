"""MaskDINO's pixel decoder: a deformable encoder of multi-scale feature maps, and mask features of stride 4."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import DeformableDetrTransformerEncoder, SinePositionalEncoding
from mmengine.model import BaseModule, ModuleList, caffe2_xavier_init, xavier_init
from torch import Tensor, nn

from mmtr.errors import UserError

from .layers import EncoderLayer

#: Orders of levels in the released code: 'low2high' has the finest map first in the encoder, and last in the decoder.
FEATURE_ORDERS = ('low2high', 'high2low')


def flatten_levels(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Flatten maps (B, C, H, W) to one sequence (B, N, C); return it, their shapes (L, 2) and first indices (L, )."""
    x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
    shapes = torch.tensor([tuple(level.shape[-2:]) for level in maps], device=x.device)
    return x, shapes, torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])


def deformable_layer(
    channels: int, feedforward_channels: int, num_levels: int, num_heads: int, num_points: int
) -> tuple[dict, dict, dict]:
    """Return the configs of self-attention, deformable attention and FFN for mmdet's deformable layers."""
    attn = dict(embed_dims=channels, num_heads=num_heads, dropout=0.0, batch_first=True)
    deformable = dict(attn, num_levels=num_levels, num_points=num_points)
    ffn = dict(
        embed_dims=channels,
        feedforward_channels=feedforward_channels,
        num_fcs=2,
        ffn_drop=0.0,
        act_cfg=dict(type='ReLU', inplace=True),
    )
    return attn, deformable, ffn


def reset_transformer(transformer: nn.Module) -> None:
    """Initialise all matrices by Xavier, and deformable attention by its own method."""
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in transformer.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.init_weights()


class MaskDINOPixelDecoder(BaseModule):
    """Encodes the feature maps of a backbone, and computes mask features (MaskDINO, "Segmentation branch").

    Args:
        in_channels: Numbers of channels of the backbone's maps, of stride 4, 8, 16, 32.
        channels: Number of channels of encoded maps and mask features, C; a multiple of 32.
        num_encoder_levels: Number of maps that are encoded, the coarsest ones.
        num_extra_levels: Number of still coarser maps, made by convolutions of stride 2.
        num_layers: Number of layers of the encoder.
        num_heads: Number of attention heads.
        num_points: Number of sampling points for each head and level.
        feedforward_channels: Number of channels of the FFN's hidden layer.
        feature_order: Order of the levels, one of ``FEATURE_ORDERS``.

    Raises:
        UserError: ``num_encoder_levels`` is more than the maps of the backbone, or ``feature_order`` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        num_encoder_levels: int = 3,
        num_extra_levels: int = 1,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 2048,
        feature_order: str = 'low2high',
    ):
        super().__init__()
        if not 1 <= num_encoder_levels <= len(in_channels):
            raise UserError(
                f'pixel_decoder.num_encoder_levels={num_encoder_levels}, but the backbone has '
                f'{len(in_channels)} maps: choose 1 to {len(in_channels)}.'
            )
        if feature_order not in FEATURE_ORDERS:
            raise UserError(
                f'pixel_decoder.feature_order={feature_order!r} is unknown: '
                f'choose {" or ".join(map(repr, FEATURE_ORDERS))}.'
            )
        self.finest_first = feature_order == 'low2high'
        self.num_levels = num_encoder_levels + num_extra_levels
        self.num_encoder_levels = num_encoder_levels
        norm = dict(type='GN', num_groups=32)

        def conv(n_in, size, **kwargs):
            return ConvModule(n_in, channels, size, norm_cfg=norm, **{'act_cfg': None, **kwargs})

        self.input_convs = ModuleList(conv(n, 1, bias=True) for n in in_channels[-num_encoder_levels:])
        widths = [in_channels[-1]] + [channels] * (num_extra_levels - 1)
        self.extra_convs = ModuleList(conv(n, 3, stride=2, padding=1, bias=True) for n in widths[:num_extra_levels])
        _, attn, ffn = deformable_layer(channels, feedforward_channels, self.num_levels, num_heads, num_points)
        self.encoder = DeformableDetrTransformerEncoder(num_layers, dict(self_attn_cfg=attn, ffn_cfg=ffn))
        self.encoder.layers = ModuleList(EncoderLayer(attn, ffn) for _ in range(num_layers))
        self.positional_encoding = SinePositionalEncoding(channels // 2, normalize=True)
        self.level_embed = nn.Parameter(torch.zeros(self.num_levels, channels))
        # The released code fuses the finest map also if it was encoded already.
        fused = in_channels[: max(len(in_channels) - num_encoder_levels, 1)]
        self.lateral_convs = ModuleList(conv(n, 1) for n in fused)
        self.output_convs = ModuleList(conv(channels, 3, padding=1, act_cfg=dict(type='ReLU')) for _ in fused)
        self.mask_feature = nn.Conv2d(channels, channels, 1)

    def init_weights(self) -> None:
        """Initialise as the released code."""
        for module in (*self.input_convs, *self.extra_convs):
            xavier_init(module.conv, distribution='uniform')
        for module in (*self.lateral_convs, *self.output_convs):
            caffe2_xavier_init(module.conv)
        caffe2_xavier_init(self.mask_feature)
        reset_transformer(self.encoder)
        nn.init.normal_(self.level_embed)

    def encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Encode the coarsest of the backbone's maps; return maps (B, C, H, W) in the order of ``feature_order``."""
        maps = maps[-self.num_encoder_levels :]
        levels, coarser = [conv(x) for conv, x in zip(self.input_convs, maps)], maps[-1]
        for conv in self.extra_convs:
            coarser = conv(coarser)
            levels.append(coarser)
        levels = levels if self.finest_first else levels[::-1]
        x, shapes, starts = flatten_levels(levels)
        positions = [
            self.positional_encoding(None, level[:1]) + embed.view(1, -1, 1, 1)
            for level, embed in zip(levels, self.level_embed)
        ]
        x = self.encoder(
            x,
            flatten_levels(positions)[0],
            None,
            spatial_shapes=shapes,
            level_start_index=starts,
            valid_ratios=x.new_ones(len(x), len(shapes), 2),
        )
        parts = x.transpose(1, 2).split(shapes.prod(1).tolist(), 2)
        return [part.unflatten(2, tuple(level.shape[-2:])) for part, level in zip(parts, levels)]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute mask features (B, C, H / 4, W / 4) and encoded maps from the backbone's maps, finest first."""
        encoded = self.encode(maps)
        x = encoded[0 if self.finest_first else -1]
        for i in reversed(range(len(self.lateral_convs))):
            lateral = self.lateral_convs[i](maps[i])
            x = lateral + F.interpolate(x, lateral.shape[-2:], mode='bilinear', align_corners=False)
            x = self.output_convs[i](x)
        return self.mask_feature(x), encoded
