_base_ = './segmenter_vit-l_pascal-context.py'
# As released: 20x20 clusters of 30x30 patches.
model = dict(
    backbone=dict(
        token_reduction=dict(type='Expediting', layer=14, grid=2 / 3, restore='copy', restore_at='after_head')
    )
)
