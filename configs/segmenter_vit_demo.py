# A small Segmenter for the demo's drawn scenes; demo/segmenter_vit_demo.pth holds its weights, made by
#   python demo/draw_scenes.py && python tools/train.py configs/segmenter_vit_demo.py --amp &&
#   python demo/publish.py work_dirs/segmenter_vit_demo/iter_2400.pth demo/segmenter_vit_demo.pth
_base_ = [
    'mmseg::_base_/models/segmenter_vit-b16_mask.py',
    'mmseg::_base_/default_runtime.py',
    './_base_/datasets/demo_scenes.py',
]
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
crop_size = (288, 384)
model = dict(
    type='mmtr.EncoderDecoder',
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        type='mmtr.VisionTransformer',
        img_size=crop_size,
        embed_dims=128,
        num_layers=10,
        num_heads=4,
        drop_path_rate=0.0,
    ),
    decode_head=dict(
        type='mmtr.SegmenterMaskTransformerHead',
        in_channels=128,
        channels=128,
        embed_dims=128,
        num_heads=4,
        num_classes=12,
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)

iterations = 2400
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=0.03),
    clip_grad=dict(max_norm=1.0),
    # From random weights, attention must first learn where tokens are: positions and class queries learn faster.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(lr_mult=20.0, decay_mult=0.0), cls_emb=dict(lr_mult=20.0, decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=1e-6, power=0.9, by_epoch=False, begin=100, end=iterations),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    visualization=dict(type='SegVisualizationHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=3),
)
randomness = dict(seed=0)
