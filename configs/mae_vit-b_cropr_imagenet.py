# Token Cropr on MAE's ViT-B/16, which is not published: 55/64 of the patches leave, in equal parts after 10 layers.
_base_ = './mae_vit-b_imagenet.py'
model = dict(
    backbone=dict(
        out_type='avg_all',
        layer_cfgs=[dict()] * 11 + [dict(drop_path_rate=0.0)],
        token_reduction=dict(type='Cropr', task='classification', num_classes=1000),
    )
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    constructor='mmtr.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.65),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        by_epoch=True,
        begin=5,
        end=100,
        eta_min_ratio=5e-4,
        convert_to_iter_based=True,
    ),
]
