"""mmpretrain's ImageClassifier for backbones whose token reduction is trained."""

from mmpretrain.models.classifiers import image as stock

from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS


@MODELS.register_module()
class ImageClassifier(ReductionLosses, stock.ImageClassifier):
    """mmpretrain's ``ImageClassifier``: same arguments, weights and outputs; see ``ReductionLosses``.

    The auxiliary losses are that of the head, with the labels, or the scores of Mixup and CutMix, that it gets.
    """

    def _num_classes(self):
        return getattr(self.head, 'num_classes', None)

    def _head(self):
        return self.head
