# 23 of 32 rows and columns from layer 12 on: Tab. 3 of Token Adapter. Nothing is given back to patches, for the
# head reads the class token alone.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=9 / 32, layers=(12, 24), score='max')))
