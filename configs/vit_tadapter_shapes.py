# Without training: 6 of 16 rows and columns merge from layer 3 on, those that the layer before attended to least.
_base_ = './vit_shapes.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=3 / 8, layers=(3, 6), score='attn')))
