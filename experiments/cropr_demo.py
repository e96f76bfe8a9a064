"""Fine-tune the demo's model with Cropr; see random_demo.py."""

_base_ = './random_demo.py'
model = dict(backbone=dict(token_reduction=dict(_delete_=True, type='Cropr', task='semantic', num_classes=12)))
