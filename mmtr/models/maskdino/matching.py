"""Hungarian matching of predictions and objects by class, box and mask costs."""

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
    """A box cost for things; for stuff it is the mean cost of things ("Decoupled box prediction").

    Args:
        cost: Cost of mmdet.
        num_things: Number of thing classes; labels from here on are stuff.
    """

    def __init__(self, cost: Callable, num_things: int):
        self.cost, self.num_things = cost, num_things

    def __call__(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: Optional[dict] = None, **kwargs
    ) -> Tensor:
        """Compute the cost matrix (predictions, objects), as mmdet's costs."""
        cost = self.cost(pred_instances, gt_instances, img_meta=img_meta, **kwargs)
        things = gt_instances.labels < self.num_things
        if not things.all():
            cost[:, ~things] = cost[:, things].mean() if things.any() else 0.0
        return cost


class Matcher:
    """Hungarian matching of the predictions of one layer by class, box and mask ("Hybrid matching").

    Args:
        weights: Weights of the costs ``cls``, ``bbox``, ``giou``, ``mask`` and ``dice``.
        num_points: Number of random points at which masks are compared, the same for all masks of an image.
        num_things: Number of thing classes; stuff classes, which come after, are matched without boxes. None: all
            classes are matched with boxes.
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
        """Return, for each image, the indices of matched predictions and those of their objects."""
        return [self._match(*each) for each in zip(*prediction, targets)]

    def _match(self, scores, boxes, masks, target):
        points = torch.rand(1, self.num_points, 2, device=masks.device)

        def sample(masks):
            return point_sample(masks.unsqueeze(0).float(), points).squeeze(0)

        # Boxes are relative to the image already; mmdet divides by img_shape.
        assigned = self.assigner.assign(
            InstanceData(scores=scores, bboxes=bbox_cxcywh_to_xyxy(boxes), masks=sample(masks)),
            InstanceData(labels=target.labels, bboxes=bbox_cxcywh_to_xyxy(target.bboxes), masks=sample(target.masks)),
            img_meta=dict(img_shape=(1, 1)),
        ).gt_inds
        matched = assigned.nonzero().squeeze(1)
        return matched, assigned[matched] - 1
