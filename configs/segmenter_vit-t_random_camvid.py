# The floor of segmenter_vit-t_cropr_camvid.py: the same schedule, curriculum and training, tokens dropped at random.
_base_ = './segmenter_vit-t_finetune_camvid.py'
model = dict(backbone=dict(token_reduction=dict(type='Random', r=55 / 64 / 10, restore='last', fusion='llf')))
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
