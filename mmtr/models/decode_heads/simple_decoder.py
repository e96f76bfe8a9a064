"""The light decoder of DAR (Lei et al., CVPR 2025)."""

from collections.abc import Sequence
from typing import Optional

from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor

from mmtr.declared import Declared
from mmtr.registry import MODELS
from mmtr.settings import Whole


@MODELS.register_module()
class SimpleDecoder(Declared, BaseDecodeHead):
    """A light decode head: 1x1 convolution, bilinear upsampling, 1x1 convolution, classifier (Lei et al., CVPR 2025).

    Args:
        in_channels: Number of channels of the feature map, C.
        channels: Number of output channels of both convolutions.
        scale_factor: Factor s of the upsampling, in height and width.
        norm_cfg: Config of the norm after each convolution; None: batch norm.
        kwargs: mmseg's ``BaseDecodeHead``'s.

    Raises:
        UserError: A setting has a value that is not allowed.
    """

    setting_prefix = 'decode_head.'

    def __init__(
        self,
        in_channels: int,
        channels: Whole(1, 2**14) = 256,
        scale_factor: Whole(1, 64) = 4,
        norm_cfg: Optional[dict] = None,
        **kwargs,
    ):
        super().__init__(in_channels, channels, norm_cfg=dict(type='BN') if norm_cfg is None else norm_cfg, **kwargs)
        self.scale_factor = scale_factor
        cfg = dict(kernel_size=1, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.conv = ConvModule(in_channels, channels, **cfg)
        self.fusion_conv = ConvModule(channels, channels, **cfg)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Predict class logits (B, classes, s * H, s * W) from the selected feature map (B, C, H, W)."""
        x = self.conv(self._transform_inputs(inputs))
        size = [self.scale_factor * int(n) for n in x.shape[2:]]
        x = resize(x, size, mode='bilinear', align_corners=self.align_corners)
        return self.cls_seg(self.fusion_conv(x))
