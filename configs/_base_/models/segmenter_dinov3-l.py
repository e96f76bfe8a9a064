# Segmenter's head on DINOv3 ViT-L/16.
_base_ = './segmenter_dinov3-b.py'
model = dict(
    backbone=dict(embed_dims=1024, num_layers=24, num_heads=16, hidden=4096),
    decode_head=dict(in_channels=1024, channels=1024, embed_dims=1024, num_heads=16),
)
