"""A linear classifier of patches, behind a norm."""

from collections.abc import Sequence
from typing import Optional

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mmtr.declared import Declared
from mmtr.registry import MODELS


@MODELS.register_module()
class LinearHead(Declared, BaseDecodeHead):
    """Norm, dropout and a 1x1 convolution to classes, as DINOv3's linear evaluation (arXiv 2508.10104, Sec. 6.1).

    Args:
        in_channels: Number of channels of the feature map, C.
        norm_cfg: Config of the norm; None: batch norm.
        kwargs: mmseg's ``BaseDecodeHead``'s.

    Raises:
        UserError: A setting does not exist.
    """

    setting_prefix = 'decode_head.'
    #: A patch's logits depend on its own token alone.
    takes_reduced_tokens = True
    decided = ('channels',)

    def __init__(self, in_channels: int, norm_cfg: Optional[dict] = None, **kwargs):
        super().__init__(
            in_channels, channels=in_channels, norm_cfg=dict(type='BN') if norm_cfg is None else norm_cfg, **kwargs
        )
        self.norm = build_norm_layer(self.norm_cfg, in_channels)[1]

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Predict class logits (B, classes, H, W) from the selected feature map (B, C, H, W)."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
