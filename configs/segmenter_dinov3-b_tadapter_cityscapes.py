_base_ = './segmenter_dinov3-b_cityscapes.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), score='max', restore='copy')))
