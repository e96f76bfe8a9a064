"""ViTDet's pyramid: maps of several strides from the one map of a plain backbone."""

from collections.abc import Sequence
from functools import partial
from typing import Optional

import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.registry import MODELS


@MODELS.register_module()
class LN2d(nn.LayerNorm):
    """Layer norm over the channels of a map, (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        # mmcv's RoIAlign reads a map as contiguous, whatever it is.
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps of strides 4, 8, 16, 32 and 64 for a backbone of stride 16 (Li et al., "Exploring Plain Vision
    Transformer Backbones for Object Detection", Sec. 3); of 2 to 32 for one of stride 8.

    Two transposed convolutions, one, none, and max-pooling; then a convolution of 1x1 and one of 3x3; the last
    map is every second row and column of the one before.

    Args:
        in_channels: C of the backbone, a multiple of 4.
        out_channels: Of each map.
        norm_cfg: Of every norm. None: ``LN2d``.
        init_cfg: mmengine's.

    Raises:
        UserError: ``in_channels`` is no multiple of 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        norm_cfg: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        if in_channels % 4:
            raise UserError(
                f'neck.in_channels={in_channels} must be a multiple of 4: the finest map of the pyramid '
                'comes from a quarter of the channels.'
            )
        norm_cfg = dict(type='mmtr.LN2d', eps=1e-6) if norm_cfg is None else norm_cfg
        half, quarter = in_channels // 2, in_channels // 4
        double = partial(nn.ConvTranspose2d, kernel_size=2, stride=2)
        scales = [
            (
                quarter,
                nn.Sequential(
                    double(in_channels, half), build_norm_layer(norm_cfg, half)[1], nn.GELU(), double(half, quarter)
                ),
            ),
            (half, double(in_channels, half)),
            (in_channels, nn.Identity()),
            (in_channels, nn.MaxPool2d(2, ceil_mode=True)),
        ]
        self.stages = ModuleList(
            nn.Sequential(
                scale,
                ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None),
            )
            for width, scale in scales
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Five maps of the last of ``inputs``, each (B, C, H, W)."""
        outs = [stage(inputs[-1]) for stage in self.stages]
        return (*outs, F.max_pool2d(outs[-1], 1, 2))
