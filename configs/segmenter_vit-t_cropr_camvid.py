_base_ = './segmenter_vit-t_finetune_camvid.py'
model = dict(backbone=dict(token_reduction=dict(type='Cropr', task='semantic', num_classes=11)))
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
