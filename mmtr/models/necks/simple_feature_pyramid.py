"""ViTDet's simple feature pyramid: feature maps of several strides from the single one of a plain ViT."""

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
    """Layer norm over the channels of a feature map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``: (B, C, H, W) -> (B, C, H, W)."""
        # mmcv's RoIAlign assumes contiguous maps.
        return super().forward(x.movedim(1, -1)).movedim(-1, 1).contiguous()


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", Sec. 3).

    Its maps have strides 4, 8, 16, 32 and 64 for a backbone of stride 16, and 2 to 32 for one of stride 8. The first
    four come from two transposed convolutions, one, none, and max-pooling, each followed by a 1x1 and a 3x3
    convolution; the last one is every second row and column of the fourth.

    Args:
        in_channels: Number of channels of the backbone, a multiple of 4.
        out_channels: Number of channels of each map.
        norm_cfg: Config of every norm; None: ``LN2d``.
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
        """Return five maps (B, out_channels, H, W), finest first, from the last map in ``inputs``."""
        outs = [stage(inputs[-1]) for stage in self.stages]
        return (*outs, F.max_pool2d(outs[-1], 1, 2))
