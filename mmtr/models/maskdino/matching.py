"""Which prediction answers for which object: the cheapest one-to-one assignment by class, box and mask."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from mmcv.ops import point_sample
from mmdet.models.task_modules.assigners import (
    BBoxL1Cost,
    CrossEntropyLossCost,
    DiceCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
)
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor


class ThingsCost:
    """A cost that stuff does not have: there it is the mean of the things' ("Decoupled box prediction")."""

    def __init__(self, cost: Callable, num_things: int):
        self.cost, self.num_things = cost, num_things

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs
    ) -> Tensor:
        """As mmdet's costs: (predictions, objects)."""
        cost = self.cost(pred_instances, gt_instances, img_meta=img_meta, **kwargs)
        things = gt_instances.labels < self.num_things
        if not things.all():
            cost[:, ~things] = cost[:, things].mean() if things.any() else 0.0
        return cost


class Matcher:
    """Hungarian matching of the predictions of one layer by class, box and mask ("Hybrid matching").

    Args:
        weights: Of the costs: ``cls``, ``bbox``, ``giou``, ``mask``, ``dice``.
        num_points: So many random points stand for a mask, the same for all masks of an image.
        num_things: Classes from here on are matched without boxes; None: all have boxes.
    """

    def __init__(self, weights: dict[str, float], num_points: int, num_things: Optional[int] = None):
        boxes = [BBoxL1Cost('xywh', weight=weights['bbox']), IoUCost('giou', weight=weights['giou'])]
        if num_things is not None:
            boxes = [ThingsCost(cost, num_things) for cost in boxes]
        self.num_points = num_points
        self.assigner = HungarianAssigner([dict(type=FocalLossCost)])
        self.assigner.match_costs = [
            FocalLossCost(weight=weights['cls']),
            *boxes,
            CrossEntropyLossCost(weight=weights['mask']),
            DiceCost(pred_act=True, eps=1.0, weight=weights['dice']),
        ]

    @torch.no_grad()
    def __call__(self, prediction: Sequence[Tensor], targets: Sequence[InstanceData]) -> list[tuple[Tensor, Tensor]]:
        """Of each image the indices of predictions and, beside them, of their objects."""
        return [self._match(*each) for each in zip(*prediction, targets)]

    def _match(self, scores, boxes, masks, target):
        points = torch.rand(1, self.num_points, 2, device=masks.device)

        def sample(masks):
            return point_sample(masks.unsqueeze(0).float(), points).squeeze(0)

        # In shares of the image, which is what mmdet makes of pixels.
        assigned = self.assigner.assign(
            InstanceData(scores=scores, bboxes=bbox_cxcywh_to_xyxy(boxes), masks=sample(masks)),
            InstanceData(labels=target.labels, bboxes=bbox_cxcywh_to_xyxy(target.bboxes), masks=sample(target.masks)),
            img_meta=dict(img_shape=(1, 1)),
        ).gt_inds
        matched = assigned.nonzero().squeeze(1)
        return matched, assigned[matched] - 1
