_base_ = './segmenter_eva02-l_ade20k.py'
model = dict(
    backbone=dict(
        embed_dims=384,
        num_layers=12,
        num_heads=6,
        ffn_norm=False,
        drop_path_rate=[0.2 * i / 11 for i in range(11)] + [0.0],
    ),
    decode_head=dict(in_channels=384, channels=384),
)
