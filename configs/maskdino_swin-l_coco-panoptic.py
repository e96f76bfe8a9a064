# Mask2Former's data and optimizer, and 50 epochs of 16 images, here on 16 GPUs.
_base_ = [
    'mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py',
    './_base_/models/maskdino.py',
]
model = dict(
    type='mmtr.MaskDINO',
    backbone=dict(type='mmtr.SwinTransformer'),
    panoptic_head=dict(
        _delete_=True, **{**_base_.maskdino_swin_l_head, 'num_stuff_classes': 53, 'initial_boxes': 'no'}
    ),
    panoptic_fusion_head=None,
    train_cfg=None,
    test_cfg=dict(_delete_=True, instance_on=True, panoptic_on=True),
)
max_iters = 368750
train_cfg = dict(max_iters=max_iters, dynamic_intervals=[(365001, max_iters)])
param_scheduler = dict(end=max_iters, milestones=[327778, 355092])
