# 16 epochs, and one rate for all layers.
_base_ = [
    './_base_/models/eomt_dinov3-l_semantic.py',
    './_base_/eomt/ade20k-semantic.py',
    './_base_/eomt/schedule_dinov3.py',
]
model = _base_.eomt
train_cfg = dict(max_iters=19560)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
# The masks of the first query layer go early, the others at their usual time.
custom_hooks = [
    dict(type='mmtr.MaskAnnealingHook', power=0.9, starts=(0, 6520, 9780, 13040), ends=(3000, 9780, 13040, 16300))
]
