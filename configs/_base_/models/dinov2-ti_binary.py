# Small enough to train on a CPU, at 224x224.
_base_ = './dinov2-b_binary.py'
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    backbone=dict(img_size=(224, 224), embed_dims=192, num_heads=3),
    decode_head=dict(in_channels=192),
)
