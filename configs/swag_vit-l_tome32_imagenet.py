# 32 tokens merge in each layer: Tab. 3 of Token Adapter.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='ToMe', mode='progressive', r=32)))
