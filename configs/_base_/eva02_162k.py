# Cropr's schedule: 64 epochs of the 2527 steps that ADE20K has with 8 images each, on one GPU.
_base_ = ['mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py']
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.05),
    constructor='mmtr.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.9),
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=161728, by_epoch=False)]
train_cfg = dict(max_iters=161728, val_interval=5054)
default_hooks = dict(checkpoint=dict(interval=5054))
