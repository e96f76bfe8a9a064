"""Unified denoising (DN-DETR; MaskDINO): the ground truth, disturbed, as further queries that find back to it."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from mmdet.models.layers import inverse_sigmoid
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn


class NoisyQueries(NamedTuple):
    """Queries (B, S, C), boxes (B, S, 4) before the sigmoid, attention mask (S + Q, S + Q), number of groups, and of
    each image which slots stand for which objects."""

    content: torch.Tensor
    boxes: torch.Tensor
    attn_mask: torch.Tensor
    num_groups: int
    indices: list


def noisy_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Labels, of which a share of ``noise / 2`` is drawn anew."""
    drawn = torch.rand(labels.shape, device=labels.device) < noise / 2
    return torch.where(drawn, torch.randint_like(labels, num_classes), labels)


def noisy_boxes(boxes: Tensor, noise: float) -> Tensor:
    """Boxes (N, 4), centre and size in 0 ... 1, moved by up to ``noise`` of half the size, resized by up to it."""
    most = torch.cat((boxes[:, 2:] / 2, boxes[:, 2:]), 1) * noise
    return (boxes + (torch.rand_like(boxes) * 2 - 1) * most).clamp(0, 1)


def group_mask(num_groups: int, size: int, num_queries: int, device: Optional[torch.device] = None) -> Tensor:
    """True where a query must not look: ``num_groups`` groups of ``size`` see themselves and the ``num_queries``
    after them, and those only themselves."""
    group = torch.arange(num_groups, device=device).repeat_interleave(size)
    group = torch.cat((group, group.new_full((num_queries,), -1)))
    return (group.unsqueeze(0) != group.unsqueeze(1)) & (group.unsqueeze(0) != -1)


class Denoising(BaseModule):
    """Noisy copies of the ground truth.

    ``num_slots`` slots are shared by as many groups as they hold of the batch's fullest image. Without objects, or
    with more of them than slots, there is no denoising.
    """

    def __init__(self, num_classes: int, channels: int, num_slots: int = 100, noise: float = 0.4):
        super().__init__()
        self.num_slots, self.noise = num_slots, noise
        self.label_embed = nn.Embedding(num_classes, channels)

    def forward(self, targets: Sequence[InstanceData], num_queries: int) -> Optional[NoisyQueries]:
        """``NoisyQueries`` of the targets, before ``num_queries`` others; or None."""
        size = max(len(target.labels) for target in targets)
        num_groups = self.num_slots // size if size else 0
        if not num_groups:
            return None
        weight = self.label_embed.weight
        content = weight.new_zeros(len(targets), num_groups * size, weight.shape[1])
        boxes = weight.new_zeros(len(targets), num_groups * size, 4)
        indices = []
        for i, target in enumerate(targets):
            objects = torch.arange(len(target.labels), device=weight.device)
            slots = (torch.arange(num_groups, device=weight.device).unsqueeze(1) * size + objects).flatten()
            objects = objects.repeat(num_groups)
            labels = noisy_labels(target.labels[objects], self.label_embed.num_embeddings, self.noise)
            content[i, slots] = self.label_embed(labels)
            boxes[i, slots] = inverse_sigmoid(noisy_boxes(target.bboxes[objects], self.noise))
            indices.append((slots, objects))
        return NoisyQueries(
            content, boxes, group_mask(num_groups, size, num_queries, weight.device), num_groups, indices
        )
