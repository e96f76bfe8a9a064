"""What cannot give tokens back after the head, and says so."""

import pytest
import torch
from mmseg.models.segmentors import EncoderDecoder as Stock
from torch import nn

from mmtr import UserError, apply_token_reduction
from mmtr.models.backbones import DINOv2, VisionTransformer
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.models.segmentors import DistillationEncoderDecoder
from mmtr.reducers import BackboneInfo, build_token_reducer

from .late_restoring import CLASSES, HEADS, LATE, VIT, images, samples, segmentor

PLAIN = {key: value for key, value in LATE.items() if not key.startswith('restore')}


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(head=dict(HEADS['linear'], num_convs=1)), 'decode_head of type FCNHead as it is set needs the full grid'),
        (dict(head=dict(HEADS['linear'], num_convs=1, kernel_size=1)), None),
        (
            dict(head=dict(type='mmtr.SimpleDecoder', in_channels=32, num_classes=5)),
            'decode_head of type SimpleDecoder',
        ),
        (
            dict(head=dict(HEADS['mask'], token_reduction=dict(type='ToMe'))),
            'of type SegmenterMaskTransformerHead .* use SegmenterMaskTransformerHead without token_reduction',
        ),
        (
            dict(head=dict(HEADS['mask'], token_reduction={**LATE, 'layer': 0})),
            "decode_head.token_reduction.restore_at='after_head' is for a backbone",
        ),
        (
            dict(auxiliary_head=HEADS['linear']),
            'model.auxiliary_head needs the full grid of patches.*auxiliary_head=None',
        ),
        (dict(neck=dict(type='FPN', in_channels=[32], out_channels=32, num_outs=1)), 'model.neck needs the full grid'),
        (dict(backbone=dict(output_cls_token=True)), 'output_cls_token=True'),
        (dict(reduction={**PLAIN, 'restore_at': 'after_head'}), "restore='residual': set restore='copy'"),
        (dict(reduction={**LATE, 'restore_at': 'later'}), "restore_at='later' must be one of before_norm"),
        (dict(kind=DistillationEncoderDecoder, distillation=dict(channels=8)), 'no features of patches for'),
        (
            dict(
                kind=DistillationEncoderDecoder,
                reduction=None,
                distillation=dict(channels=8, teacher=dict(type='mmtr.VisionTransformer', **VIT, token_reduction=LATE)),
            ),
            'distillation.teacher.token_reduction.restore_at',
        ),
    ],
    ids=str,
)
def test_what_cannot_give_logits_back_is_refused_when_built(change, words):
    if words is None:
        assert segmentor(LATE, **change)(images()).shape == (2, CLASSES, 6, 8)
        return
    with pytest.raises(UserError, match=words):
        segmentor(**{'reduction': LATE, **change})


def test_a_swin_and_a_detector_are_refused():
    with pytest.raises(UserError, match='cannot work in a backbone of stages: the next stage needs all'):
        build_token_reducer(LATE, BackboneInfo(6, 32, 0, (12, 12), stage=3))

    class Holder(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    class Detector(ReductionLosses, Holder):
        def _num_classes(self):
            return 5

    with pytest.raises(UserError, match='and a Detector needs the full grid of patches'):
        Detector(VisionTransformer(**VIT, token_reduction=LATE))


def test_a_stock_segmentor_says_what_it_lacks():
    # mmseg's asks nothing when it is built.
    model = segmentor(LATE, kind=Stock)
    with pytest.raises(UserError, match="only a segmentor of type='mmtr.EncoderDecoder' gives its logits back"):
        model(images())
    with pytest.raises(UserError, match="only a segmentor of type='mmtr.EncoderDecoder'"):
        model.loss(images(), samples())


def test_applied_to_a_model_that_exists():
    model = apply_token_reduction(segmentor(None), LATE)
    with torch.no_grad():
        assert torch.equal(model(images()), segmentor(LATE)(images()))
    plain = segmentor(None, dict(HEADS['linear'], num_convs=1))
    stock = segmentor(None, kind=Stock)
    for other, words in (
        (plain, 'FCNHead as it is set'),
        (stock, 'this is a EncoderDecoder of mmseg'),
        (DINOv2(img_size=48, patch_size=8, embed_dims=32, num_layers=3, num_heads=4), 'a DINOv2 of'),
    ):
        backbone = getattr(other, 'backbone', other)
        before = backbone.token_reducer, backbone.token_reduction
        with pytest.raises(UserError, match=words):
            apply_token_reduction(other, LATE)
        assert (backbone.token_reducer, backbone.token_reduction) == before
