# Two rows of tokens, 64 at first, merge before each layer but the first, as long as two are left.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', per_layer=(2, 0), layers=(0, 24), score='max')))
