_base_ = './eomt_dinov3-l.py'
model = dict(
    backbone=dict(embed_dims=768, num_layers=12, num_heads=12, hidden=3072),
    panoptic_head=dict(in_channels=768, num_query_layers=3),
)
