# Healing of a stronger reduction, from the first layer on: the encoder is six times as fast as that of stock
# mmsegmentation on 2 cores, and five times as fast as ours; docs/healing.md says what that costs.
_base_ = './segmenter_vit-t_tadapter_camvid-heal.py'
iterations = 1000
model = dict(backbone=dict(token_reduction=dict(layers=(0, 12))))
train_cfg = dict(max_iters=iterations, val_interval=iterations)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=iterations // 10),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=iterations // 10, end=iterations),
]
