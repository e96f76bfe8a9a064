# Small enough to train on a CPU, from random weights: no layer starts as the identity.
_base_ = './eomt_dinov2-l.py'
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=16, pad_mask=True, pad_seg=True
    ),
    backbone=dict(img_size=256, embed_dims=192, num_layers=8, num_heads=3, layer_scale_init_value=1.0),
    panoptic_head=dict(in_channels=192, num_query_layers=2, num_points=1024),
)
