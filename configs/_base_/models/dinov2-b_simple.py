# DINOv2 ViT-B/14 with the light decoder of DAR-TR-PEFT, at the 518 pixels that DINOv2's position table is for.
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size=(518, 518),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type='mmtr.DINOv2', img_size=(518, 518), patch_size=14, embed_dims=768, num_layers=12, num_heads=12),
    decode_head=dict(
        type='mmtr.SimpleDecoder',
        in_channels=768,
        channels=256,
        norm_cfg=dict(type='BN'),
        dropout_ratio=0.1,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
