# The release's semantic MaskDINO: learned queries, cross-entropy, levels in the other order.
_base_ = ['mmdet::_base_/default_runtime.py', './models/maskdino.py']
num_classes = 150
image_size = (512, 512)
max_iters = 160000
model = dict(
    type='mmtr.MaskDINO',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_seg=True,
        seg_pad_value=255,
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, pad_seg=True, seg_pad_value=255)],
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    panoptic_head={
        **_base_.maskdino_head,
        'num_things_classes': 0,
        'num_stuff_classes': num_classes,
        'num_queries': 100,
        'two_stage': False,
        'initial_boxes': 'no',
        'softmax': True,
        'stuff_boxes': True,
        'pixel_decoder': {
            **_base_.maskdino_head['pixel_decoder'],
            'num_extra_levels': 0,
            'feedforward_channels': 1024,
            'feature_order': 'high2low',
        },
    },
    # Trained by softmax: probabilities need no sharpening.
    test_cfg=dict(instance_on=False, semantic_on=True, temperature=None, enlarged='classes'),
)
# What mmdet's models want of mmseg's data.
pack = dict(
    type='mmdet.PackDetInputs',
    meta_keys=('img_path', 'seg_map_path', 'ori_shape', 'img_shape', 'scale_factor', 'reduce_zero_label'),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            query_embed=dict(decay_mult=0.0),
            query_feat=dict(decay_mult=0.0),
            label_embed=dict(decay_mult=0.0),
        ),
        norm_decay_mult=0.0,
    ),
)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_iters, milestones=[135000, 150000], gamma=0.1, by_epoch=False)
]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=3)
)
log_processor = dict(by_epoch=False)
