_base_ = './maskdino_swin-t_nuclei.py'
# 5x5 of the 8x8 tokens of each window, in the second of the two blocks of stage 2.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', stage=2, ratio=0.35, layers=(1, 2))))
