"""mmdet's test-time augmentation, extended to masks."""

from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel as Stock
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData

from mmtr.registry import MODELS

_AXES = dict(horizontal=[-1], vertical=[-2], diagonal=[-2, -1])


@MODELS.register_module()
class DetTTAModel(Stock):
    """mmdet's ``DetTTAModel`` with masks: boxes of all views are merged by NMS, and each keeps the mask of its view."""

    def _merge_single_sample(self, data_samples):
        found = InstanceData.cat([_upright(sample) for sample in data_samples])
        if len(found):
            boxes, kept = batched_nms(found.bboxes, found.scores, found.labels, self.tta_cfg['nms'])
            found = found[kept][: self.tta_cfg['max_per_img']]
            found.scores = boxes[: len(found), -1]  # some kinds of suppression lower scores
        data_samples[0].pred_instances = found
        return data_samples[0]


def _upright(sample: DetDataSample) -> InstanceData:
    """Return the instances of an augmented view, flipped back to the original image."""
    found = sample.pred_instances
    if not sample.get('flip'):
        return found
    direction = sample.flip_direction
    found.bboxes = bbox_flip(found.bboxes, sample.ori_shape, direction)
    if 'masks' in found:
        found.masks = found.masks.flip(_AXES[direction])
    return found
