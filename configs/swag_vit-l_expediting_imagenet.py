# 23x23 clusters from layer 12 on: Tab. 3 of Token Adapter.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='Expediting', layer=12, grid=23, temperature=1.0)))
