_base_ = './segmenter_vit-l_cityscapes.py'
# As released: 32x32 clusters of 48x48 patches.
model = dict(
    backbone=dict(
        token_reduction=dict(type='Expediting', layer=12, grid=2 / 3, restore='copy', restore_at='after_head')
    )
)
