"""The Dice loss of one foreground channel."""

from mmseg.models.losses import DiceLoss
from torch import Tensor

from mmtr.errors import UserError
from mmtr.registry import MODELS


@MODELS.register_module()
class BinaryDiceLoss(DiceLoss):
    """mmseg's Dice loss for heads with ``out_channels=1``: of the foreground, without ignored pixels.

    mmseg's own takes label 0, the background, for the class of the one channel. Its arguments are the same.

    Raises:
        UserError: The head has another number of output channels.
    """

    def forward(self, pred: Tensor, target: Tensor, ignore_index: int = 255, **kwargs) -> Tensor:
        """Logits (B, 1, H, W) and labels 0, 1 or ``ignore_index`` (B, H, W) -> loss."""
        if pred.shape[1] != 1:
            raise UserError(
                f"mmtr.BinaryDiceLoss is for decode_head.out_channels=1, not {pred.shape[1]}: use 'DiceLoss'."
            )
        ignored = (target == ignore_index).unsqueeze(1)
        # Where the probability and the label are 0, no sum has a part.
        return super().forward(
            pred.masked_fill(ignored, -float('inf')), target.unsqueeze(1).masked_fill(ignored, 0), **kwargs
        )
