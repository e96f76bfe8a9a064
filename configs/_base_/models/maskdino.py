# MaskDINO's head (IDEA-Research/MaskDINO) for ResNet-50 on COCO instances; configs put it in place of another head.
custom_imports = dict(imports=['mmtr', 'mmtr.models.detectors'], allow_failed_imports=False)
maskdino_head = dict(
    type='mmtr.MaskDINOHead',
    in_channels=[256, 512, 1024, 2048],
    num_things_classes=80,
    num_stuff_classes=0,
    channels=256,
    num_queries=300,
    two_stage=True,
    initial_boxes='bitmask',
    softmax=False,
    stuff_boxes=False,
    pixel_decoder=dict(
        num_encoder_levels=3, num_extra_levels=1, num_layers=6, feedforward_channels=2048, feature_order='low2high'
    ),
    decoder=dict(num_layers=9, feedforward_channels=2048),
    denoising=dict(num_slots=100, noise=0.4),
    loss=dict(
        weights=dict(cls=4.0, bbox=5.0, giou=2.0, mask=5.0, dice=5.0),
        num_points=12544,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    ),
)
# The Swin-L models encode the finest map too.
maskdino_swin_l_head = dict(
    maskdino_head,
    in_channels=[192, 384, 768, 1536],
    pixel_decoder=dict(maskdino_head['pixel_decoder'], num_encoder_levels=4),
)
