# A small EoMT on images of cell nuclei, from random weights, on a CPU.
_base_ = ['./_base_/models/eomt_dinov2-ti.py', './_base_/datasets/dsb2018_nuclei.py', './_base_/nuclei_600.py']
model = dict(
    backbone=dict(patch_size=8),
    panoptic_head=dict(num_things_classes=1, num_stuff_classes=0, num_queries=150, num_upscale=1),
    # Up to 369 nuclei are in one image.
    test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=150),
)
optim_wrapper = dict(clip_grad=dict(max_norm=0.1, norm_type=2))
custom_hooks = [dict(type='mmtr.MaskAnnealingHook')]
