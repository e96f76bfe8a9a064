# Without training: 4 of 12 rows and columns merge from layer 2 on.
_base_ = './vit_shapes.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=1 / 3, layers=(2, 6))))
