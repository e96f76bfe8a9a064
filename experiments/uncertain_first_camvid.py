"""Fine-tune the CamVid model with the ranking of uncertain_first.py."""

_base_ = '../configs/segmenter_vit-t_finetune_camvid.py'
custom_imports = dict(imports=['mmtr', 'uncertain_first'])
model = dict(
    type='UncertainFirst',
    teacher='work_dirs/segmenter_vit-t_finetune_camvid/iter_1000.pth',
    backbone=dict(token_reduction=dict(type='RankedElsewhere')),
)
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
