"""Small segmentors whose tokens are given back after the head."""

import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmtr.models.segmentors import EncoderDecoder

VIT = dict(
    img_size=(48, 64),
    patch_size=8,
    embed_dims=32,
    num_layers=3,
    num_heads=4,
    mlp_ratio=2,
    final_norm=True,
    drop_path_rate=0.0,
)
CLASSES = 5
LATE = dict(
    type='Expediting',
    layer=1,
    grid=(3, 5),
    k=4,
    temperature=0.2,
    recon_temperature=0.1,
    restore='copy',
    restore_at='after_head',
)
LOSS = dict(type='CrossEntropyLoss')
HEADS = dict(
    mask=dict(
        type='mmtr.SegmenterMaskTransformerHead',
        in_channels=32,
        channels=32,
        num_classes=CLASSES,
        num_layers=2,
        num_heads=4,
        embed_dims=32,
        drop_path_rate=0.0,
        dropout_ratio=0.0,
        loss_decode=LOSS,
    ),
    linear=dict(
        type='FCNHead',
        in_channels=32,
        channels=32,
        num_classes=CLASSES,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        loss_decode=LOSS,
    ),
)


def segmentor(reduction, head='mask', kind=EncoderDecoder, backbone=None, test_cfg=None, **kwargs):
    """A segmentor in eval mode whose every weight matters."""
    torch.manual_seed(0)
    head = HEADS[head] if isinstance(head, str) else head
    backbone = {'type': 'mmtr.VisionTransformer', **VIT, **(backbone or {}), 'token_reduction': reduction}
    test_cfg = ConfigDict(test_cfg or dict(mode='whole'))
    model = kind(backbone=backbone, decode_head=dict(head), test_cfg=test_cfg, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(batch=2, height=48, width=64):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def samples(batch=2, shape=(48, 64)):
    meta = dict(img_shape=shape, pad_shape=shape, ori_shape=shape)
    labels = torch.randint(CLASSES, (batch, 1, *shape), generator=torch.Generator().manual_seed(2))
    return [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=each)) for each in labels]
