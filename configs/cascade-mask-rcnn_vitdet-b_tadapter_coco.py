# From layer 5 on, half as many patches, without windows. Nothing is published for ViTDet.
_base_ = './cascade-mask-rcnn_vitdet-b_coco.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), layers=(5, 12))))
