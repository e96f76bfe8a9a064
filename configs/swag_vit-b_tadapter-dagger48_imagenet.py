# Two rows of tokens, 48 at first, merge before each layer but the first, as long as two are left.
_base_ = './swag_vit-b_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', per_layer=(2, 0), layers=(0, 12), score='max')))
