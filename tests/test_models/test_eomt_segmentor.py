"""EoMT in mmseg, and what no EoMT can be built with."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict

from mmtr import UserError
from mmtr.registry import MODELS

from .test_eomt import CHANNELS, HEAD, LAYERS, SIDE, drawn, eomt, images, vit


def segmentor(**kwargs):
    return drawn(
        dict(
            type='mmtr.EncoderDecoder',
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
            backbone=vit(**kwargs),
            decode_head=dict(type='mmtr.EoMTSegHead', **HEAD, num_classes=5),
            test_cfg=dict(mode='slide', crop_size=(SIDE, SIDE), stride=(SIDE, SIDE)),
        )
    )


def test_logits_of_a_segmentor_are_sums_over_queries():
    model, wide = segmentor(token_reduction=dict(type='TokenAdapter')), torch.randn(1, 3, SIDE, 150)
    with torch.no_grad():
        own = model.predict(wide)[0].seg_logits.data
        total, count = torch.zeros(5, SIDE, 150), torch.zeros(150)
        for start in (0, 150 - SIDE):
            classes, masks = (each[-1] for each in model.decode_head(model.backbone(wide[..., start : start + SIDE])))
            masks = F.interpolate(masks, (SIDE, SIDE), mode='bilinear', align_corners=False).sigmoid()
            total[..., start : start + SIDE] += torch.einsum('qk,qhw->khw', classes[0].softmax(-1)[:, :-1], masks[0])
            count[start : start + SIDE] += 1
    torch.testing.assert_close(own, total / count, atol=1e-5, rtol=1e-5)


def test_masks_of_a_crop_that_is_no_multiple_of_a_patch_stay_where_they_are():
    model, x = segmentor(), torch.randn(1, 3, 90, 70)
    whole = F.pad(x, (0, 10, 0, 6))
    with torch.no_grad():
        cut, padded = (model.encode_decode(each, [{}]) for each in (x, whole))
    torch.testing.assert_close(cut, padded[..., :90, :70])


@pytest.mark.parametrize(
    'settings, said',
    [
        (
            dict(token_reduction=dict(type='TokenAdapter', layers=(2, 7))),
            'The last 3 of 8 layers run with the queries of the head and do not count',
        ),
        (dict(head=dict(num_query_layers=LAYERS)), 'num_query_layers=8 must be from 1 to 7'),
        (dict(head=dict(in_channels=48)), 'panoptic_head.in_channels=48 must be 32, the channels of the backbone'),
        (dict(head=dict(num_queries=0)), 'panoptic_head.num_queries=0 must be'),
        (dict(head=dict(num_query=3)), "no setting 'num_query', the nearest is 'num_queries'"),
        (dict(out_indices=(3, 7)), r'out_indices=\[3, 7\] must be the last layer alone'),
        (dict(test_cfg=dict(semantic_on=True)), "test_cfg has 'semantic_on': choose from panoptic_on, instance_on"),
        (
            dict(img_size=90),
            r'backbone.img_size=\(90, 90\) must be a multiple of the patches of 16 pixels, such as \(80, 80\)',
        ),
        (
            dict(data_preprocessor=dict(type='mmdet.DetDataPreprocessor')),
            'data_preprocessor.pad_size_divisor=1 must be a multiple of the patches of 16 pixels, such as 96',
        ),
        (
            dict(data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[1.0] * 3, std=[1.0] * 3)),
            'an EoMT normalises images itself',
        ),
        (dict(token_reduction=dict(type='ALGM', restore='copy', restore_at='after_head')), "restore_at='after_head'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        eomt(**settings)


def test_another_backbone_or_model_is_refused():
    swin = dict(type='mmtr.SwinTransformer', embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    with pytest.raises(UserError, match='must be a plain ViT of mmtr, such as mmtr.DINOv2, and not a SwinTransformer'):
        cfg = dict(type='mmtr.EoMT', backbone=swin, panoptic_head=dict(type='mmtr.EoMTHead', **HEAD))
        MODELS.build(ConfigDict(cfg))
    beit = dict(type='mmtr.BEiT', img_size=SIDE, embed_dims=CHANNELS, num_layers=4, num_heads=2)
    with pytest.raises(UserError, match='has windows or a bias of positions, which learned queries cannot join'):
        MODELS.build(ConfigDict(type='mmtr.EncoderDecoder', backbone=beit, decode_head=segmentor_head()))
    stock = MODELS.build(ConfigDict(type='mmseg.EncoderDecoder', backbone=vit(), decode_head=segmentor_head()))
    with pytest.raises(UserError, match='the model must be an mmtr.EoMT or an mmtr.EncoderDecoder'):
        stock._forward(images())
    with pytest.raises(UserError, match='run with the queries of an EoMT head, so it gives no feature maps'):
        tuple(segmentor().backbone(images()))


def segmentor_head():
    return dict(type='mmtr.EoMTSegHead', **HEAD, num_classes=5)
