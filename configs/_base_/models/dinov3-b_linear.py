# DINOv3 ViT-B/16 with a linear head on its last layer.
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size=(512, 512),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmtr.DINOv3',
        img_size=(512, 512),
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        ffn='mlp',
        hidden=3072,
        num_registers=4,
    ),
    decode_head=dict(
        type='mmtr.LinearHead',
        in_channels=768,
        num_classes=150,
        dropout_ratio=0.1,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
# Of other sizes; model = _base_.dinov3_l.
dinov3_s = dict(backbone=dict(embed_dims=384, num_heads=6, hidden=1536), decode_head=dict(in_channels=384))
dinov3_l = dict(
    backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, hidden=4096), decode_head=dict(in_channels=1024)
)
