"""mmseg's EncoderDecoder for backbones whose token reduction is trained."""
from mmseg.models.segmentors import encoder_decoder as stock

from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS


@MODELS.register_module()
class EncoderDecoder(ReductionLosses, stock.EncoderDecoder):
    """mmseg's ``EncoderDecoder``: same arguments, weights and outputs; see ``ReductionLosses``."""

    def _num_classes(self):
        return self.num_classes
