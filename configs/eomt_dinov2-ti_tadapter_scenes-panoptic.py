_base_ = './eomt_dinov2-ti_scenes-panoptic.py'
# Tokens are reduced in layers 3 to 5, and are whole again before the queries join.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', layers=(3, 6))))
