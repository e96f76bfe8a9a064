# A small EoMT on the demo's drawn scenes, from random weights, on a CPU.
_base_ = ['./_base_/models/eomt_dinov2-ti.py', './_base_/datasets/demo_panoptic.py', './_base_/nuclei_600.py']
model = dict(
    data_preprocessor=dict(pad_size_divisor=256),
    panoptic_head=dict(num_things_classes=5, num_stuff_classes=7, num_queries=60),
    test_cfg=dict(panoptic_on=True, object_mask_thr=0.5, iou_thr=0.5),
)
optim_wrapper = dict(clip_grad=dict(max_norm=0.1, norm_type=2))
custom_hooks = [dict(type='mmtr.MaskAnnealingHook')]
