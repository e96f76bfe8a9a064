# A row of tokens, 24 at first, merges before each layer but the first.
_base_ = './swag_vit-b_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', per_layer=(1, 0), layers=(0, 12), score='max')))
