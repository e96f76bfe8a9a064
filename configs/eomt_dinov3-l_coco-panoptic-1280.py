_base_ = ['./_base_/models/eomt_dinov3-l.py', './_base_/eomt/coco-panoptic-1280.py', './_base_/eomt/schedule_dinov3.py']
model = _base_.eomt
# The masks of the first query layer go early, the others at their usual time.
custom_hooks = [
    dict(type='mmtr.MaskAnnealingHook', power=0.9, starts=(0, 29564, 44346, 59128), ends=(3000, 44346, 59128, 73910))
]
