"""Heads and backbones must be of one task: stock models stop at the first image, deep inside."""

from torch import nn

from mmtr.checks.model_config import type_of
from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError

DENSE = ('mmseg.BaseDecodeHead', 'mmdet.BaseDenseHead', 'mmdet.BaseRoIHead')
KEYS = ('decode_head', 'bbox_head', 'rpn_head', 'roi_head', 'panoptic_head')


def check_head_keys(model: dict) -> None:
    """Raise a ``UserError`` if the config of a classifier has heads of dense prediction."""
    for key in (*KEYS, 'auxiliary_head'):
        if type_of(model) == 'ImageClassifier' and model.get(key):
            raise UserError(
                f'model.{key} predicts places in an image, but the model, of type ImageClassifier, gives an image one '
                'class: set head=dict(...) of mmpretrain in its place, or the type of a segmentor or detector.'
            )


def check_heads(model: nn.Module) -> nn.Module:
    """Return ``model``, which is in no wrapper.

    Raises:
        UserError: It classifies images by a head of dense prediction, or the reverse; or its backbone gives no map of
            features, which heads of dense prediction need.
    """
    if derives(type(model), CLASSIFIER):
        kind = type(model.head)
        if any(derives(kind, name) for name in DENSE):
            raise UserError(
                f'model.head is a {kind.__name__}, which predicts places in an image, but the model, of type '
                f'{type(model).__name__}, gives an image one class: set a head of mmpretrain, such as LinearClsHead, '
                'or the type of a segmentor or detector.'
            )
        return model
    for key in KEYS:
        head = getattr(model, key, None)
        if not isinstance(head, nn.Module):
            continue
        if derives(type(head), 'mmpretrain.ClsHead'):
            raise UserError(
                f'model.{key} is a {type(head).__name__}, which gives an image one class: set a head of mmseg or '
                "mmdet, or type='mmtr.ImageClassifier' with head=dict(...)."
            )
        out_type = getattr(getattr(model, 'backbone', None), 'out_type', 'featmap')
        if out_type != 'featmap':
            raise UserError(
                f'model.backbone.out_type={out_type!r} gives no map of features, which model.{key} needs: set '
                "out_type='featmap'."
            )
    return model
