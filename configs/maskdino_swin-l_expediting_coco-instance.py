_base_ = './maskdino_swin-l_coco-instance.py'
# 8x8 clusters of the 12x12 tokens of each window, in the last 12 of the 18 blocks of stage 3, with the settings of the
# release's Mask2Former for instances. Its MaskDINO for instances has grid=9, n_iters=3, window=5, k=25.
model = dict(
    backbone=dict(
        token_reduction=dict(
            type='Expediting',
            stage=3,
            layer=6,
            grid=8,
            n_iters=5,
            window=11,
            temperature=0.01,
            k=60,
            recon_temperature=0.01,
            restore='copy',
        )
    )
)
