_base_ = './segmenter_vit-l_ade20k.py'
# 28x28 clusters of 40x40 patches.
model = dict(backbone=dict(token_reduction=dict(type='Expediting', layer=10, grid=0.7, restore='copy')))
