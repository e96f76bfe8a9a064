# Nothing is published for S: as many patches leave as from L, 880 of 1024, in the 10 modules that 12 layers have.
_base_ = './segmenter_eva02-s_ade20k.py'
model = dict(backbone=dict(token_reduction=dict(type='Cropr', task='semantic', num_classes=150, r=88, multiple_of=8)))
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
