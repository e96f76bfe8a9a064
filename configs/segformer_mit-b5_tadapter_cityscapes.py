# Stage 3 from block 10 of 40 on runs on half as many tokens.
_base_ = './segformer_mit-b5_cityscapes.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', stage=3, ratio=0.3, layers=(10, 40))))
