"""The losses of the predictions of a layer against the objects that they are matched with."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmcv.ops import point_sample
from mmdet.models.losses import CrossEntropyLoss, DiceLoss, FocalLoss, GIoULoss, L1Loss
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmtr.errors import UserError

WEIGHTS = dict(cls=4.0, bbox=5.0, giou=2.0, mask=5.0, dice=5.0)


class MaskDINOLoss(nn.Module):
    """Class, box and mask losses; masks are compared at sampled points, most of them with uncertain predictions.

    Args:
        num_classes: Number of classes.
        softmax: Whether the class loss is cross-entropy over the classes and "no object", or the focal loss.
        num_things: Number of thing classes; stuff classes, which come after, have no box losses. None: all classes
            have box losses.
        weights: Loss weights that differ from ``WEIGHTS``.
        num_points: Number of sampled points for each mask.
        oversample_ratio: Number of candidates for uncertain points, as a multiple of ``num_points``.
        importance_sample_ratio: Share of points that are the most uncertain candidates; the others are random.
        no_object_weight: Class weight of "no object" in cross-entropy.

    Raises:
        UserError: A weight has an unknown name, or a ratio is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        softmax: bool = False,
        num_things: Optional[int] = None,
        weights: Optional[dict[str, float]] = None,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        no_object_weight: float = 0.1,
    ):
        super().__init__()
        unknown = set(weights or ()) - WEIGHTS.keys()
        if unknown:
            raise UserError(f'loss.weights has {sorted(unknown)[0]!r}: choose from {", ".join(WEIGHTS)}.')
        if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise UserError(
                f'loss.oversample_ratio={oversample_ratio} must be at least 1, and '
                f'loss.importance_sample_ratio={importance_sample_ratio} in 0 ... 1.'
            )
        self.weights = {**WEIGHTS, **(weights or {})}
        self.num_classes, self.num_things, self.num_points = num_classes, num_things, num_points
        self.sampling = (num_points, oversample_ratio, importance_sample_ratio)
        self.class_weight = [1.0] * num_classes + [no_object_weight] if softmax else None
        if softmax:
            self.cls = CrossEntropyLoss(class_weight=self.class_weight, loss_weight=self.weights['cls'])
        else:
            self.cls = FocalLoss(loss_weight=self.weights['cls'])
        self.bbox = L1Loss(loss_weight=self.weights['bbox'])
        self.giou = GIoULoss(loss_weight=self.weights['giou'])
        self.mask = CrossEntropyLoss(use_sigmoid=True, loss_weight=self.weights['mask'])
        self.dice = DiceLoss(naive_dice=True, eps=1.0, loss_weight=self.weights['dice'])

    def forward(
        self,
        prediction: Sequence[Tensor],
        targets: Sequence[InstanceData],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_objects: float,
    ) -> dict[str, Tensor]:
        """Compute the losses, each a sum divided by ``num_objects``; cross-entropy is a weighted mean.

        Args:
            prediction: Class logits (B, Q, K), boxes (B, Q, 4), mask logits (B, Q, h, w).
            targets: Result of ``targets_of``, one for each image.
            indices: For each image, indices of predictions and of the objects that they are matched with.
            num_objects: Number of objects, the divisor of the sums.
        """
        scores, boxes, masks = prediction
        image = torch.cat([torch.full_like(matched, i) for i, (matched, _) in enumerate(indices)])
        matched = image, torch.cat([matched for matched, _ in indices])

        def of(name):
            return torch.cat([target[name][objects] for target, (_, objects) in zip(targets, indices)])

        labels = of('labels')
        wanted = labels.new_full(scores.shape[:2], self.num_classes)
        wanted[matched] = labels
        things = slice(None) if self.num_things is None else labels < self.num_things
        found, true = boxes[matched][things], of('bboxes')[things]
        losses = dict(
            loss_cls=self._class_loss(scores.flatten(0, 1), wanted.flatten(), num_objects),
            loss_bbox=self.bbox(found, true, avg_factor=num_objects),
            loss_giou=self.giou(bbox_cxcywh_to_xyxy(found), bbox_cxcywh_to_xyxy(true), avg_factor=num_objects),
        )
        if not len(labels):
            nothing = masks.sum() * 0
            return dict(losses, loss_mask=nothing, loss_dice=nothing)
        found, true = self._on_points(masks[matched].unsqueeze(1), of('masks').unsqueeze(1))
        return dict(
            losses,
            loss_mask=self.mask(found.flatten(), true.flatten(), avg_factor=num_objects * self.num_points),
            loss_dice=self.dice(found, true, avg_factor=num_objects),
        )

    def _class_loss(self, scores, wanted, num_objects):
        if self.class_weight is None:
            return self.cls(scores, wanted, avg_factor=num_objects)
        return self.cls(scores, wanted, avg_factor=scores.new_tensor(self.class_weight)[wanted].sum())

    def _on_points(self, found, true):
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(found, None, *self.sampling)
            true = point_sample(true.float(), points).squeeze(1)
        return point_sample(found, points).squeeze(1), true
