_base_ = './upernet_swin-t_ade20k.py'
# 5x5 of the 7x7 tokens of each window, in the last 4 of the 6 blocks of stage 3.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', stage=3, ratio=0.3, layers=(2, 6))))
