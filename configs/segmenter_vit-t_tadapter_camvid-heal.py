# A trained plain model, of which a reduction makes the encoder four times as fast, trained to agree with itself without
# it: docs/healing.md. It starts from --cfg-options load_from=work_dirs/segmenter_vit-t_camvid/iter_5000.pth
_base_ = './segmenter_vit-t_finetune_camvid.py'
iterations = 400
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', layers=(1, 12), ratio=0.65, restore='learned')))
custom_hooks = [dict(type='mmtr.HealingHook')]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
# The learned code starts from zero, and all else is trained already.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(token_reducer=dict(lr_mult=10.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=iterations // 10, end=iterations),
]
