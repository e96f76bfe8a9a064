# The demo's drawn scenes: python demo/draw_scenes.py
dataset_type = 'BaseSegDataset'
data_root = 'demo/data/scenes'
crop_size = (288, 384)
metainfo = dict(
    classes=('sky', 'hill', 'building', 'road', 'grass', 'earth', 'tree', 'water', 'car', 'person', 'pole', 'fence'),
    palette=[
        [120, 180, 240],
        [130, 110, 90],
        [180, 120, 120],
        [140, 140, 140],
        [90, 170, 60],
        [200, 170, 110],
        [20, 90, 30],
        [30, 80, 200],
        [230, 30, 60],
        [250, 120, 200],
        [250, 230, 40],
        [140, 60, 180],
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(512, 384), ratio_range=(0.7, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        img_suffix='.jpg',
        seg_map_suffix='.png',
        pipeline=train_pipeline,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        reduce_zero_label=True,
        img_suffix='.jpg',
        seg_map_suffix='.png',
        pipeline=test_pipeline,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
