# The demo's model, of which a reduction makes the encoder four times as fast, trained to agree with itself without it,
# on drawn scenes without labels: docs/healing.md.
_base_ = './segmenter_vit_demo.py'
iterations = 700
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', layers=(1, 10), ratio=0.65, restore='learned')))
custom_hooks = [dict(type='mmtr.HealingHook')]
load_from = 'demo/segmenter_vit_demo.pth'
train_cfg = dict(max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=None,
    # The learned code starts from zero, and all else is trained already.
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, custom_keys=dict(token_reducer=dict(lr_mult=10.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=iterations // 10, end=iterations),
]
