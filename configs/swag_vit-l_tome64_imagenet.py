# 64 tokens merge in each layer, or half of those that are left.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='ToMe', mode='progressive', r=64)))
