_base_ = './segmenter_vit-l_pascal-context.py'
model = dict(backbone=dict(token_reduction=dict(type='SegFormerPlusPlus')))
