_base_ = './eomt_dinov3-b_coco-panoptic-640.py'
# Tokens are reduced in layers 5 to 8, and are whole again before the queries join.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', layers=(5, 9))))
