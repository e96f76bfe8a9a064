# Segmenter's head on DINOv3 ViT-B/16.
_base_ = './segmenter_vit-b.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='mmtr.DINOv3',
        img_size=(512, 512),
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        ffn='mlp',
        hidden=3072,
        num_registers=4,
        drop_path_rate=0.1,
    ),
)
