# The demo's drawn scenes, objects told apart: python demo/draw_scenes.py
data_root = 'demo/data/scenes/'
image_size = (256, 256)
things = ('building', 'tree', 'car', 'person', 'pole')
stuff = ('sky', 'hill', 'road', 'grass', 'earth', 'water', 'fence')
metainfo = dict(
    classes=things + stuff,
    thing_classes=things,
    stuff_classes=stuff,
    palette=[
        (180, 120, 120),
        (20, 90, 30),
        (230, 30, 60),
        (250, 120, 200),
        (250, 230, 40),
        (120, 180, 240),
        (130, 110, 90),
        (140, 140, 140),
        (90, 170, 60),
        (200, 170, 110),
        (30, 80, 200),
        (140, 60, 180),
    ],
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResize',
        scale=image_size,
        ratio_range=(0.8, 1.5),
        resize_type='mmtr.AntialiasedResize',
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True, backend='pillow'),
    dict(type='LoadPanopticAnnotations'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
dataset = dict(type='CocoPanopticDataset', data_root=data_root, metainfo=metainfo)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        **dataset,
        ann_file='panoptic_training.json',
        data_prefix=dict(img='images/training/', seg='panoptic/training/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset,
        ann_file='panoptic_validation.json',
        data_prefix=dict(img='images/validation/', seg='panoptic/validation/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoPanopticMetric',
    ann_file=data_root + 'panoptic_validation.json',
    seg_prefix=data_root + 'panoptic/validation/',
)
test_evaluator = val_evaluator
