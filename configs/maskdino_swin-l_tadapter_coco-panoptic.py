_base_ = './maskdino_swin-l_coco-panoptic.py'
# 8x8 of the 12x12 tokens of each window, in the last 12 of the 18 blocks of stage 3.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', stage=3, ratio=1 / 3, layers=(6, 18))))
