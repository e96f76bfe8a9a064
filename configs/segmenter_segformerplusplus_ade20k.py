_base_ = './segmenter_vit-l_ade20k.py'
model = dict(backbone=dict(token_reduction=dict(type='SegFormerPlusPlus')))
