# All weights trained. The paper tunes on binary tasks; here its schedule, with crops of Cityscapes and windows to test.
_base_ = ['./_base_/models/dinov2-b_simple.py', 'mmseg::_base_/datasets/cityscapes.py', './_base_/dinov2_40e.py']
crop_size = (518, 518)
model = dict(decode_head=dict(num_classes=19), test_cfg=dict(mode='slide', crop_size=crop_size, stride=(345, 345)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=10,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
