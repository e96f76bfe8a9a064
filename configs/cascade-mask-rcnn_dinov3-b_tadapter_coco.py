_base_ = './cascade-mask-rcnn_dinov3-b_coco.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), layers=(5, 12))))
