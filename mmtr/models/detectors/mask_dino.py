"""MaskDINO as a detector of mmdet."""

from collections.abc import Sequence
from typing import Optional

from mmdet.models.detectors import MaskFormer
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor

from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS


@MODELS.register_module()
class MaskDINO(ReductionLosses, MaskFormer):
    """MaskDINO, for boxes, instance, panoptic and semantic segmentation: mmdet's ``MaskFormer`` with another head.

    Args:
        backbone: Config of the backbone.
        panoptic_head: Config of a ``MaskDINOHead``, whatever the task.
        panoptic_fusion_head: Config of the fusion head; None: ``MaskDINOFusionHead``.
        kwargs: ``MaskFormer``'s. ``test_cfg`` has the options of ``MaskDINOFusionHead``.
    """

    def __init__(self, backbone: dict, panoptic_head: dict, panoptic_fusion_head: Optional[dict] = None, **kwargs):
        classes = {
            key: panoptic_head[key] for key in ('num_things_classes', 'num_stuff_classes') if key in panoptic_head
        }
        fusion = panoptic_fusion_head or dict(type='mmtr.MaskDINOFusionHead', **classes)
        super().__init__(
            backbone, panoptic_head=ConfigDict(panoptic_head), panoptic_fusion_head=ConfigDict(fusion), **kwargs
        )

    def _num_classes(self):
        return self.num_classes

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> Sequence[DetDataSample]:
        """Add predictions to the data samples.

        Args:
            batch_inputs: (B, channels, height, width) normalised images.
            batch_data_samples: Data samples of the batch.
            rescale: Whether predictions have the size of the original image, or that of the input.

        Returns:
            The data samples with those of ``pred_instances``, ``pred_panoptic_seg`` and ``pred_sem_seg`` that
            ``test_cfg`` turns on.
        """
        prediction = self.panoptic_head.predict(self.extract_feat(batch_inputs), batch_data_samples)
        results = self.panoptic_fusion_head.predict(prediction, batch_data_samples, rescale)
        for sample, result in zip(batch_data_samples, results):
            if 'sem_results' in result:  # which MaskFormer does not handle
                sample.pred_sem_seg = result.pop('sem_results')
        return self.add_pred_to_datasample(batch_data_samples, results)
