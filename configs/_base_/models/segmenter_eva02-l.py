# EVA-02-L with a linear head, as Cropr trains it: no drop path in the last layer, a head that starts near 0.
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmtr.EVA02',
        patch_size=16,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        mlp_ratio=8 / 3,
        drop_path_rate=[0.2 * i / 23 for i in range(23)] + [0.0],
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=1024,
        channels=1024,
        num_convs=0,
        dropout_ratio=0.0,
        concat_input=False,
        init_cfg=dict(type='TruncNormal', std=2e-5, override=dict(name='conv_seg')),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
