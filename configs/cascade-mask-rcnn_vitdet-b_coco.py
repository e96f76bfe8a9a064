# ViTDet's recipe for COCO from a MAE: 100 epochs, which are 184,375 steps of 64 images, here on 32 GPUs.
_base_ = './cascade-mask-rcnn_eva02-l_coco.py'
image_size = (1024, 1024)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        _delete_=True,
        type='mmtr.ViTDet',
        img_size=image_size,
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        window_size=14,
        global_attn_indexes=[2, 5, 8, 11],
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=768),
)
train_pipeline, test_pipeline = (
    [{**step, **{key: image_size for key in ('scale', 'crop_size') if key in step}} for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=184375)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.7))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
custom_hooks = []
