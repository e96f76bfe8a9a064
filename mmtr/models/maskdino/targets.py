"""Training targets from the annotations of instance, panoptic and semantic data."""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData

from mmtr.errors import UserError


def targets_of(
    samples: Sequence[DetDataSample], num_things: int, num_stuff: int, device: torch.device
) -> list[InstanceData]:
    """Collect the objects of each image: ``labels`` (n, ), ``masks`` (n, H, W) of bool, ``bboxes`` (n, 4).

    Boxes are centre and size relative to the padded image. Thing objects are the instances of a sample. Stuff objects
    are the classes from ``num_things`` on in its ``gt_sem_seg``: one object for each class, with one box.

    Args:
        samples: Data samples of the batch.
        num_things: Number of thing classes.
        num_stuff: Number of stuff classes.
        device: Device of the targets.

    Raises:
        UserError: The masks are not padded as the images are.
    """
    return [_targets(sample, num_things, num_stuff, device) for sample in samples]


def _targets(sample, num_things, num_stuff, device):
    height, width = shape = tuple(sample.batch_input_shape)
    labels, boxes = torch.empty(0, dtype=torch.long, device=device), torch.empty(0, 4, device=device)
    masks = torch.empty(0, *shape, dtype=torch.bool, device=device)
    things = sample.gt_instances
    if num_things and 'masks' in things and len(things):
        labels, boxes = things.labels, things.bboxes
        masks = things.masks.to_tensor(torch.bool, device)
        _check(masks, shape, 'pad_mask')
    if num_stuff and 'gt_sem_seg' in sample:
        classes = sample.gt_sem_seg.sem_seg.squeeze(0)
        _check(classes, shape, 'pad_seg')
        present = classes.unique().long()
        present = present[(present >= num_things) & (present < num_things + num_stuff)]
        stuff = classes == present.view(-1, 1, 1)
        labels, masks = torch.cat((labels, present)), torch.cat((masks, stuff))
        boxes = torch.cat((boxes, mask2bbox(stuff)))
    boxes = bbox_xyxy_to_cxcywh(boxes) / boxes.new_tensor((width, height, width, height))
    return InstanceData(labels=labels, masks=masks, bboxes=boxes)


def _check(masks, shape, key):
    if tuple(masks.shape[-2:]) != shape:
        raise UserError(
            f'The masks of an image are of {tuple(masks.shape[-2:])} pixels, its padded image of {shape}: '
            f'set model.data_preprocessor.{key}=True.'
        )
