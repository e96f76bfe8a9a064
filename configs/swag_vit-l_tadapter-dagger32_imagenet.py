# A row of tokens, 32 at first, merges before each layer but the first: the dagger of Tab. 3 of Token Adapter.
_base_ = './swag_vit-l_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', per_layer=(1, 0), layers=(0, 24), score='max')))
