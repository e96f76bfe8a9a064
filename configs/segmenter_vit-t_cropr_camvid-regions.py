# Cropr as a small model and a short training need it: each part of an image keeps its share of patches, what leaves
# follows the nearest patch that is left, and the queries learn faster than what they look at.
_base_ = './segmenter_vit-t_cropr_camvid.py'
model = dict(backbone=dict(token_reduction=dict(region=3, restore='residual', pre_norm=True)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(queries=dict(lr_mult=30), reducer=dict(lr_mult=10))))
