# 31 epochs of 1262 steps, from a model of COCO panoptic: load_from=..., whose class head does not fit and is left out.
_base_ = ['./detection.py', 'mmdet::_base_/datasets/ade20k_panoptic.py']
eomt = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(img_size=_base_.image_size),
    panoptic_head=dict(num_things_classes=100, num_stuff_classes=50, num_queries=200),
    test_cfg=dict(panoptic_on=True, object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True),
)
# The release's brightness is a factor, and its contrast keeps the mean; otherwise this is its colour jitter.
train_pipeline = [
    *_base_.panoptic_pipeline[:2],
    dict(type='mmseg.PhotoMetricDistortion'),
    *_base_.panoptic_pipeline[2:],
]
test_pipeline = [dict(type='LoadImageFromFile'), _base_.fit, dict(type='LoadPanopticAnnotations'), _base_.pack]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KPanopticDataset',
        data_root=_base_.data_root,
        ann_file='ade20k_panoptic_train.json',
        data_prefix=dict(img='images/training/', seg='ade20k_panoptic_train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=39120, val_interval=2524)
default_hooks = dict(checkpoint=dict(interval=2524))
