_base_ = './segmenter_dinov3-b_ade20k.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), score='max', restore='copy')))
