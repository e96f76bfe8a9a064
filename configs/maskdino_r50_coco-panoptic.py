# Mask2Former's data and schedule, 50 epochs of 16 images.
_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py', './_base_/models/maskdino.py']
model = dict(
    type='mmtr.MaskDINO',
    panoptic_head=dict(_delete_=True, **{**_base_.maskdino_head, 'num_stuff_classes': 53, 'initial_boxes': 'no'}),
    panoptic_fusion_head=None,
    train_cfg=None,
    test_cfg=dict(_delete_=True, instance_on=True, panoptic_on=True),
)
