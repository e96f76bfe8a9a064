"""Images in class folders, and the smallest classifier on mmpretrain."""

import numpy as np
from mmengine.config import Config
from PIL import Image

CLASSES = ('blue', 'green', 'grey', 'red')
COLOURS = dict(blue=(40, 40, 200), green=(40, 200, 40), grey=(128, 128, 128), red=(200, 40, 40))


def draw_classes(root, images=3, size=64, seed=0):
    """Noisy images of one colour, by class in the folders ``train`` and ``val`` below ``root``."""
    rng = np.random.default_rng(seed)
    for split in ('train', 'val'):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = np.clip(COLOURS[name] + rng.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{name}{i}.png')


def classifier_cfg(root, work_dir, **backbone):
    """Config of an ``ImageClassifier`` (width 32, three layers) with Mixup and a top-level ``data_preprocessor``."""

    def loader(split, sampler, batch_size, pipeline=()):
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type=sampler, shuffle=split == 'train'),
            dataset=dict(
                type='CustomDataset',
                data_root=str(root),
                data_prefix=split,
                metainfo=dict(classes=CLASSES),
                pipeline=[dict(type='LoadImageFromFile'), *pipeline, dict(type='PackInputs')],
            ),
        )

    val = loader('val', 'DefaultSampler', 2)
    return Config(
        dict(
            default_scope='mmpretrain',
            work_dir=str(work_dir),
            data_preprocessor=dict(num_classes=len(CLASSES), mean=[120.0] * 3, std=[60.0] * 3, to_rgb=True),
            model=dict(
                type='mmtr.ImageClassifier',
                backbone=dict(
                    type='mmtr.ClsVisionTransformer',
                    arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64),
                    img_size=64,
                    patch_size=16,
                    **backbone,
                ),
                head=dict(
                    type='LinearClsHead',
                    num_classes=len(CLASSES),
                    in_channels=32,
                    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
                ),
                train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]),
            ),
            train_dataloader=loader('train', 'InfiniteSampler', 4, [dict(type='RandomFlip', prob=0.5)]),
            val_dataloader=val,
            test_dataloader=val,
            val_evaluator=dict(type='Accuracy', topk=(1, 2)),
            test_evaluator=dict(type='Accuracy', topk=(1, 2)),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='accuracy/top1'),
                visualization=dict(type='VisualizationHook', enable=False),
            ),
            visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            log_processor=dict(by_epoch=False, window_size=1),
        )
    )
