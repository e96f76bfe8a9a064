# The paper reports no Cityscapes: its share of the patches, 40 of 1024, leaves after each of 22 layers.
_base_ = './segmenter_eva02-l_cityscapes.py'
model = dict(
    backbone=dict(token_reduction=dict(type='Cropr', task='semantic', num_classes=19, r=40 / 1024, multiple_of=8))
)
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
