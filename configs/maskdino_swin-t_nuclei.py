# A small MaskDINO on images of cell nuclei, from random weights, on a CPU.
_base_ = ['./_base_/models/maskdino.py', './_base_/datasets/dsb2018_nuclei.py', './_base_/nuclei_600.py']
model = dict(
    type='mmtr.MaskDINO',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
    ),
    backbone=dict(
        type='mmtr.SwinTransformer',
        embed_dims=48,
        depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24],
        window_size=8,
        drop_path_rate=0.0,
    ),
    panoptic_head={
        **_base_.maskdino_head,
        'in_channels': [48, 96, 192, 384],
        'num_things_classes': 1,
        'channels': 96,
        'num_queries': 150,
        # From random weights masks are empty at first, and boxes of empty masks are stuck in a corner.
        'initial_boxes': 'no',
        'pixel_decoder': dict(num_encoder_levels=3, num_extra_levels=0, num_layers=2, feedforward_channels=256),
        'decoder': dict(num_layers=3, feedforward_channels=256),
        'loss': dict(num_points=1024),
    },
    # Up to 369 nuclei are in one image.
    test_cfg=dict(instance_on=True, max_per_image=150),
)
optim_wrapper = dict(clip_grad=dict(max_norm=0.1, norm_type=2))
