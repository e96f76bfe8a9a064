# As the paper's release: 40 patches leave after each of 22 layers, the first time one more, so that sequences with
# class token are 1025, 984, 944, ..., 144 long.
_base_ = './segmenter_eva02-l_ade20k.py'
model = dict(backbone=dict(token_reduction=dict(type='Cropr', task='semantic', num_classes=150, r=40, multiple_of=8)))
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
