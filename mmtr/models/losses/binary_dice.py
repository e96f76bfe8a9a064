"""Dice loss of a single foreground channel."""

from mmseg.models.losses import DiceLoss
from torch import Tensor

from mmtr.errors import UserError
from mmtr.registry import MODELS


@MODELS.register_module()
class BinaryDiceLoss(DiceLoss):
    """Dice loss of the foreground for heads with ``out_channels=1``, without ignored pixels.

    mmseg's own ``DiceLoss`` compares the channel with label 0, the background. The arguments are the same.

    Raises:
        UserError: The head has another number of output channels.
    """

    def forward(self, pred: Tensor, target: Tensor, ignore_index: int = 255, **kwargs) -> Tensor:
        """Compute the loss.

        Args:
            pred: (B, 1, H, W) logits.
            target: (B, H, W) labels: 0, 1 or ``ignore_index``.
            ignore_index: Label of ignored pixels.
            kwargs: mmseg's ``DiceLoss.forward``'s.

        Raises:
            UserError: ``pred`` has another number of channels than 1.
        """
        if pred.shape[1] != 1:
            raise UserError(
                f"mmtr.BinaryDiceLoss is for decode_head.out_channels=1, not {pred.shape[1]}: use 'DiceLoss'."
            )
        ignored = (target == ignore_index).unsqueeze(1)
        # Pixels with probability 0 and label 0 add nothing to any sum of the Dice loss.
        return super().forward(
            pred.masked_fill(ignored, -float('inf')), target.unsqueeze(1).masked_fill(ignored, 0), **kwargs
        )
