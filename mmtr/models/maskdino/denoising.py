"""Unified denoising (DN-DETR; MaskDINO): noisy copies of the ground truth are further queries in training."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from mmdet.models.layers import inverse_sigmoid
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn


class NoisyQueries(NamedTuple):
    """Denoising queries of a batch, S of them for each image.

    Args:
        content: (B, S, C) queries.
        boxes: (B, S, 4) boxes before the sigmoid.
        attn_mask: (S + Q, S + Q) attention mask together with Q other queries, True where masked.
        num_groups: Number of noisy copies of the ground truth.
        indices: For each image, indices of queries and of the objects that they are copies of.
    """

    content: torch.Tensor
    boxes: torch.Tensor
    attn_mask: torch.Tensor
    num_groups: int
    indices: list


def noisy_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """Replace a share ``noise / 2`` of the labels by random ones."""
    drawn = torch.rand(labels.shape, device=labels.device) < noise / 2
    return torch.where(drawn, torch.randint_like(labels, num_classes), labels)


def noisy_boxes(boxes: Tensor, noise: float) -> Tensor:
    """Move boxes (N, 4), centre and size in 0 ... 1, by up to ``noise`` / 2 of their size; resize by ``noise``."""
    most = torch.cat((boxes[:, 2:] / 2, boxes[:, 2:]), 1) * noise
    return (boxes + (torch.rand_like(boxes) * 2 - 1) * most).clamp(0, 1)


def group_mask(num_groups: int, size: int, num_queries: int, device: Optional[torch.device] = None) -> Tensor:
    """Make the attention mask of denoising and other queries, True where masked.

    A denoising query attends to its own group and to the other queries, these only to each other.

    Args:
        num_groups: Number of groups of denoising queries, which come first.
        size: Number of queries of a group.
        num_queries: Number of other queries.
        device: Device of the mask.
    """
    group = torch.arange(num_groups, device=device).repeat_interleave(size)
    group = torch.cat((group, group.new_full((num_queries,), -1)))
    return (group.unsqueeze(0) != group.unsqueeze(1)) & (group.unsqueeze(0) != -1)


class Denoising(BaseModule):
    """Makes denoising queries: groups of noisy copies of the ground truth.

    The number of groups is ``num_slots`` divided by the largest number of objects in an image of the batch. Without
    objects, or with more objects than slots, there is no denoising.

    Args:
        num_classes: Number of classes.
        channels: Number of channels of queries.
        num_slots: Largest number of denoising queries for an image.
        noise: Strength of the noise of labels and boxes, 0 to 1.
    """

    def __init__(self, num_classes: int, channels: int, num_slots: int = 100, noise: float = 0.4):
        super().__init__()
        self.num_slots, self.noise = num_slots, noise
        self.label_embed = nn.Embedding(num_classes, channels)

    def forward(self, targets: Sequence[InstanceData], num_queries: int) -> Optional[NoisyQueries]:
        """Make the denoising queries of the targets, to be put before ``num_queries`` others; None: no denoising."""
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
