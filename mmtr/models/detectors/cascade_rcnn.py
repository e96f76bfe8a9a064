"""mmdet's CascadeRCNN with the auxiliary losses of token reducers."""

from mmdet.models.detectors import cascade_rcnn as stock

from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS


@MODELS.register_module()
class CascadeRCNN(ReductionLosses, stock.CascadeRCNN):
    """mmdet's ``CascadeRCNN`` (with masks, Cascade Mask R-CNN) with ``ReductionLosses``; its arguments are mmdet's."""

    def _num_classes(self):
        return self.roi_head.bbox_head[-1].num_classes
