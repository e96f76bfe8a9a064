_base_ = './eomt_dinov2-l_coco-instance-1280.py'
# Tokens are reduced in layers 10 to 19, and are whole again before the queries join.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', layers=(10, 20))))
