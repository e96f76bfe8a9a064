# Without training: 2 of 12 rows and columns merge from layer 4 on. The shapes are few patches wide: more costs accuracy.
_base_ = './vit_shapes.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=1 / 6, layers=(4, 6))))
