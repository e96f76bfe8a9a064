_base_ = './segmenter_vit-t_pascal-context.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), score='max', restore='copy')))
