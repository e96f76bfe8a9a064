# 17x17 clusters from layer 6 on.
_base_ = './swag_vit-b_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='Expediting', layer=6, grid=17, temperature=1.0)))
