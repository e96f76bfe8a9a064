# 90,000 steps of 16 images, here on 8 GPUs. The data are mmseg's, packed for mmdet.
_base_ = ['./_base_/maskdino_semantic.py', 'mmseg::_base_/datasets/cityscapes.py']
max_iters = 90000
image_size = (512, 1024)
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_seg=True, seg_pad_value=255)]
    ),
    backbone=dict(norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False),
    panoptic_head=dict(num_stuff_classes=19),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomChoiceResize',
        scales=[int(102.4 * x) for x in range(5, 21)],
        resize_type='ResizeShortestEdge',
        max_size=4096,
    ),
    dict(type='RandomCrop', crop_size=_base_.crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    _base_.pack,
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=[*_base_.test_pipeline[:-1], _base_.pack]))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='SemSegMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_iters, milestones=[80000, 87000], gamma=0.1, by_epoch=False)
]
