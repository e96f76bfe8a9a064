"""mmdet's CascadeRCNN for backbones whose token reduction is trained."""

from mmdet.models.detectors import cascade_rcnn as stock

from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS


@MODELS.register_module()
class CascadeRCNN(ReductionLosses, stock.CascadeRCNN):
    """mmdet's ``CascadeRCNN``, with masks Cascade Mask R-CNN: same arguments, weights and outputs; see
    ``ReductionLosses``."""

    def _num_classes(self):
        return self.roi_head.bbox_head[-1].num_classes
