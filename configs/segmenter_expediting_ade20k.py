_base_ = './segmenter_vit-l_ade20k.py'
# As released: 28x28 clusters of 40x40 patches, and logits that are given back.
model = dict(
    backbone=dict(token_reduction=dict(type='Expediting', layer=10, grid=0.7, restore='copy', restore_at='after_head'))
)
