# 12 epochs of 7391 steps.
_base_ = ['./detection.py', 'mmdet::_base_/datasets/coco_panoptic.py']
eomt = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(img_size=_base_.image_size),
    panoptic_head=dict(num_things_classes=80, num_stuff_classes=53, num_queries=200),
    test_cfg=dict(panoptic_on=True, object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True),
)
test_pipeline = [dict(type='LoadImageFromFile'), _base_.fit, dict(type='LoadPanopticAnnotations'), _base_.pack]
train_dataloader = dict(
    batch_size=4,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(pipeline=_base_.panoptic_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=88692, val_interval=7391)
default_hooks = dict(checkpoint=dict(interval=7391))
