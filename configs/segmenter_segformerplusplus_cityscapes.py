_base_ = './segmenter_vit-l_cityscapes.py'
model = dict(backbone=dict(token_reduction=dict(type='SegFormerPlusPlus')))
