# What EoMTs of mmseg have in common, for crops of 512 pixels and batches of 16 images on 4 GPUs.
_base_ = 'mmseg::_base_/default_runtime.py'
size = (512, 512)
eomt = dict(
    type='mmtr.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size=size,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(img_size=size),
    decode_head=dict(type='mmtr.EoMTSegHead', num_classes=150, num_queries=100),
    train_cfg=dict(),
    # The release spreads its crops evenly; up to an aspect of 2:1 these are the same.
    test_cfg=dict(mode='slide', crop_size=size, stride=size),
)
# The jitter is of fitting into the square. Pillow averages pixels where it makes an image smaller, as the release does.
# Small images are filled up with black before they are normalised. The release draws a crop without a label again; its
# brightness is a factor, and its contrast keeps the mean.
augmentations = [
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResize', scale=size, ratio_range=(0.5, 2.0), resize_type='mmtr.AntialiasedResize', keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=size),
    dict(type='Pad', size=size, pad_val=dict(img=0, seg=255)),
    dict(type='PackSegInputs'),
]
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
