"""What the heads of a model compute for images, before it is decoded: what healing compares."""

from typing import Any, Optional

from torch import Tensor, nn


def predictions(
    model: nn.Module, inputs: Tensor, data_samples: list, proposals: Optional[list] = None
) -> tuple[Any, Optional[list]]:
    """Run a model without its decoding: the mode ``tensor`` of OpenMMLab's models, and both stages of a detector.

    mmdet's own ``tensor`` mode computes the second stage for the proposals that each model finds itself.

    Args:
        model: Segmentor, classifier or detector.
        inputs: (B, channels, height, width) normalised images.
        data_samples: Data samples of the batch.
        proposals: Proposals that the second stage is computed for, of the images one each; None: the model's own.

    Returns:
        Logits (B, classes, ...) of a segmentor or classifier, or nested raw outputs of a detector; and the proposals,
        None for a model without a second stage.
    """
    if not (hasattr(model, 'roi_head') and getattr(model, 'with_rpn', False)):
        return model(inputs, data_samples, mode='tensor'), None
    x = model.extract_feat(inputs)
    if proposals is None:
        proposals = model.rpn_head.predict(x, data_samples, rescale=False)
    return [model.rpn_head(x), *_second_stage(model.roi_head, x, proposals)], proposals


def _second_stage(head, x, proposals):
    from mmdet.structures.bbox import bbox2roi  # importing mmdet takes long, and only its models come here

    rois = bbox2roi([each.bboxes for each in proposals])
    stages = [(stage,) for stage in range(head.num_stages)] if hasattr(head, 'num_stages') else [()]
    found = []
    for stage in stages:
        boxes = head._bbox_forward(*stage, x, rois)
        found += [boxes['cls_score'], boxes['bbox_pred']]
        if head.with_mask:
            found.append(head._mask_forward(*stage, x, rois[:100])['mask_preds'])
    return found
