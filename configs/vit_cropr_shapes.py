# Trained with Token Cropr from the start: 48 patches of 256 leave after each of 4 layers.
_base_ = './vit_shapes.py'
model = dict(backbone=dict(token_reduction=dict(type='Cropr', task='classification', num_classes=10, r=48)))
