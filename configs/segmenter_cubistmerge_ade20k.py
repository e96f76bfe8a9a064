_base_ = './segmenter_vit-l_ade20k.py'
# Nothing is published for Segmenter: as much as Token Adapter's configs, with the paper's value and copies.
model = dict(backbone=dict(token_reduction=dict(type='CubistMerge', ratio=0.3, restore='copy')))
