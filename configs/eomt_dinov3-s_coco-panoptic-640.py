# 24 epochs, as the release's best of this size.
_base_ = ['./_base_/models/eomt_dinov3-s.py', './_base_/eomt/coco-panoptic.py', './_base_/eomt/schedule_dinov3.py']
model = _base_.eomt
train_cfg = dict(max_iters=177384)
optim_wrapper = dict(paramwise_cfg=dict(num_full_layers=3))
# The masks of the first query layer go early, the others at their usual time.
custom_hooks = [dict(type='mmtr.MaskAnnealingHook', power=0.9, starts=(0, 73910, 118256), ends=(3000, 103474, 147820))]
