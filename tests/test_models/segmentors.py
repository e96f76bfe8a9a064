"""mmseg's segmentor and ours with a head that says what a test wants."""

import torch
from mmengine.config import ConfigDict
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import EncoderDecoder as Stock
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from mmtr.models.segmentors import EncoderDecoder


@MODELS.register_module()
class Pixels(nn.Module):
    """A backbone that gives the image."""

    def forward(self, inputs):
        return (inputs,)


@MODELS.register_module()
class Says(BaseDecodeHead):
    """A head whose logits are a function, ``say``, of the image."""

    def __init__(self, **kwargs):
        super().__init__(in_channels=3, channels=3, loss_decode=dict(type='CrossEntropyLoss'), **kwargs)

    def forward(self, inputs):
        return self.say(inputs[0])


def both(say, num_classes=5, align_corners=False, test_cfg=None, **head):
    """mmseg's segmentor and ours, whose head gives ``say(image)``."""
    models = []
    for kind in (Stock, EncoderDecoder):
        model = kind(
            backbone=dict(type='Pixels'),
            decode_head=dict(type='Says', num_classes=num_classes, align_corners=align_corners, **head),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
        ).eval()
        model.decode_head.say = say
        models.append(model)
    return models


def samples(count, shape, ori_shape=None, **meta):
    meta = dict(img_shape=shape, pad_shape=shape, ori_shape=ori_shape or shape, img_path='', **meta)
    return [SegDataSample(metainfo=meta) for _ in range(count)]


def logits_of(kind, shape, seed):
    """Random logits, and such as are hard: equal ones, ones an ulp apart, none that is the largest."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if kind == 'ties':
        return (2 * x).round() / 2
    if kind == 'ulps':
        return 1 + (x * 2).round() * 2**-23
    if kind == 'constant':
        return torch.full(shape, -0.0)
    if kind == 'one ulp above':  # equal in some pixels, once means are rounded
        x[:, 0], x[:, 1:] = 1.1800972, 1.1800973
    if kind.startswith('second everywhere'):  # but for means of pixels that have different firsts
        axis, span = {'rows': (2, 3), 'columns': (3, 2)}[kind.split()[-1]]
        along = torch.arange(shape[axis]).view([-1, 1] if axis == 2 else [1, -1])
        for k in range(min(span + 2, shape[1])):
            x[:, k] = torch.where((along - k) % (span + 2) < span, 1.0, -10.0)
        x[:, span + 2 :] = 0.9
    if kind == 'smooth':  # as of a trained model: few classes can win
        x = nn.functional.interpolate(3 * x[:, :, :3, :3], shape[2:], mode='bicubic')
    return x
