# A small ViT for the demo's drawn shapes, which a CPU trains in minutes:
#   python demo/draw_shapes.py && python tools/train.py configs/vit_shapes.py
_base_ = ['mmpretrain::_base_/default_runtime.py', './_base_/datasets/demo_shapes.py']
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.ImageClassifier',
    backbone=dict(
        type='mmtr.ClsVisionTransformer',
        arch=dict(embed_dims=96, num_layers=6, num_heads=3, feedforward_channels=384),
        img_size=96,
        patch_size=6,
        out_type='avg_featmap',
    ),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=96, topk=(1,)),
)

iterations = 2500
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.99), weight_decay=0.03),
    clip_grad=dict(max_norm=1.0),
    # From random weights, attention must first learn where tokens are: positions learn faster.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(lr_mult=20.0, decay_mult=0.0))),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=1e-6, power=0.9, by_epoch=False, begin=100, end=iterations),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations)
val_cfg, test_cfg = dict(), dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=3),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
