"""Small MaskDINOs, and whole runs of them on drawn scenes."""

import copy

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmtr.models import detectors  # noqa: F401  registers MaskDINO
from tests.drawn_coco import METAINFO, PANOPTIC

LAYERS = 2
SWIN = dict(type='mmtr.SwinTransformer', embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4)
#: Small ones, all with maps of as many channels.
BACKBONES = dict(
    resnet=dict(type='ResNet', depth=18, base_channels=16, stem_channels=16, norm_cfg=dict(type='BN')),
    swin=SWIN,
    # 2x2 of the 4x4 tokens of each window, in the second of the two blocks of stage 1.
    reduced=dict(SWIN, token_reduction=dict(type='TokenAdapter', stage=1, ratio=0.5, layers=(1, 2))),
)


def model_cfg(things=2, stuff=0, test_cfg=None, backbone='resnet', **head):
    """20 queries, two layers each."""
    return Config(
        dict(
            model=dict(
                type='mmtr.MaskDINO',
                data_preprocessor=dict(
                    type='DetDataPreprocessor',
                    mean=[110.0] * 3,
                    std=[60.0] * 3,
                    bgr_to_rgb=True,
                    pad_size_divisor=32,
                    pad_mask=True,
                    pad_seg=True,
                ),
                backbone=BACKBONES[backbone],
                panoptic_head={
                    **dict(
                        type='mmtr.MaskDINOHead',
                        in_channels=[16, 32, 64, 128],
                        num_things_classes=things,
                        num_stuff_classes=stuff,
                        channels=64,
                        num_queries=20,
                        pixel_decoder=dict(num_layers=LAYERS, feedforward_channels=64),
                        decoder=dict(num_layers=LAYERS, feedforward_channels=64),
                        denoising=dict(num_slots=10),
                        loss=dict(num_points=256),
                    ),
                    **head,
                },
                test_cfg=test_cfg or {},
            )
        )
    ).model


def build(**kwargs):
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(**kwargs))
    model.init_weights()
    return model


def dataset_cfg(root, task='instances', test=False):
    load = dict(type='LoadImageFromFile')
    pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
    if task == 'semantic':
        return dict(
            type='BaseSegDataset',
            data_root=str(root),
            metainfo=dict(classes=PANOPTIC['classes']),
            data_prefix=dict(img_path='images', seg_map_path='semantic'),
            test_mode=test,
            pipeline=[load, dict(type='LoadAnnotations', with_bbox=False, with_label=False, with_seg=True), pack],
        )
    common = dict(data_root=str(root), ann_file=f'{task}.json', test_mode=test)
    if task == 'panoptic':
        return dict(
            common,
            type='CocoPanopticDataset',
            metainfo=PANOPTIC,
            data_prefix=dict(img='images/', seg='panoptic/'),
            pipeline=[load, dict(type='LoadPanopticAnnotations'), pack],
        )
    return dict(
        common,
        type='CocoDataset',
        metainfo=METAINFO,
        data_prefix=dict(img='images/'),
        pipeline=[load, dict(type='LoadAnnotations', with_bbox=True, with_mask=True), pack],
    )


def batch_of(dataset, *indices):
    return pseudo_collate([dataset[i] for i in indices])


def losses_of(model, batch):
    return model(**model.data_preprocessor(copy.deepcopy(batch), training=True), mode='loss')


def run_cfg(root, work_dir, task, iterations, backbone='resnet', lr=1e-3):
    """Config of a whole run: one set of images, to train on and to be tested on."""
    stuff = 0 if task == 'instances' else 2
    head = dict(things=2, stuff=stuff, test_cfg=dict(instance_on=task != 'semantic', panoptic_on=task == 'panoptic'))
    if task == 'semantic':
        head = dict(
            things=0,
            stuff=4,
            stuff_boxes=True,
            two_stage=False,
            initial_boxes='no',
            softmax=True,
            test_cfg=dict(instance_on=False, semantic_on=True, temperature=None),
        )
    metric = dict(
        instances=dict(type='CocoMetric', ann_file=str(root / 'instances.json'), metric=['bbox', 'segm']),
        panoptic=dict(
            type='CocoPanopticMetric', ann_file=str(root / 'panoptic.json'), seg_prefix=str(root / 'panoptic'), nproc=1
        ),
        semantic=dict(type='SemSegMetric', iou_metrics=['mIoU']),
    )[task]
    test = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset_cfg(root, task, test=True),
    )
    return Config(
        dict(
            default_scope='mmdet',
            work_dir=str(work_dir),
            custom_imports=dict(imports=['mmtr.models.detectors']),
            model=model_cfg(backbone=backbone, **head).to_dict(),
            randomness=dict(seed=0),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                dataset=dataset_cfg(root, task),
            ),
            val_dataloader=test,
            test_dataloader=test,
            val_evaluator=metric,
            test_evaluator=metric,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4),
                clip_grad=dict(max_norm=1.0),
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
            ),
            log_processor=dict(by_epoch=False, window_size=1),
            visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name=str(work_dir)),
        )
    )
