# DINOv3's linear evaluation: 40,000 steps of 16 images, the backbone frozen, which its learning rate of 0 does.
# What peft or a reducer adds to it is trained.
_base_ = ['mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_40k.py']
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3),
    paramwise_cfg=dict(
        custom_keys={'backbone': dict(lr_mult=0.0), 'backbone.peft': dict(), 'backbone.token_reducer': dict()}
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1500, by_epoch=False),
    dict(type='CosineAnnealingLR', eta_min=0.0, begin=1500, end=40000, by_epoch=False),
]
