_base_ = './swag_vit-b_imagenet.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=9 / 32, layers=(6, 12), score='max')))
