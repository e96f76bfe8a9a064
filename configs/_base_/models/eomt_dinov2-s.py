_base_ = './eomt_dinov2-l.py'
model = dict(
    backbone=dict(embed_dims=384, num_layers=12, num_heads=6), panoptic_head=dict(in_channels=384, num_query_layers=3)
)
