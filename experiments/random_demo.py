"""Fine-tune the demo's model while patches are dropped at random, as segmenter_vit-t_random_camvid.py does."""

_base_ = '../configs/segmenter_vit_demo.py'
model = dict(backbone=dict(token_reduction=dict(type='Random', r=55 / 64 / 8, restore='last', fusion='llf')))
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=None, paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0))
