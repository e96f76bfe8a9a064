# Token Cropr as published for MAE's ViT-L/16: 8 patches leave after each of 22 layers, the first time one more, so that
# sequences with class token are 197, 188, 180, ..., 20 long, and the last layer sees all again. The head reads the mean
# of class token and patches, as the authors' does.
_base_ = './mae_vit-l_imagenet.py'
model = dict(
    backbone=dict(
        out_type='avg_all',
        # None in the last layer, where the tokens that left come back.
        layer_cfgs=[dict()] * 23 + [dict(drop_path_rate=0.0)],
        token_reduction=dict(type='Cropr', task='classification', num_classes=1000, r=[9] + [8] * 21),
    )
)
optim_wrapper = dict(
    _delete_=True,
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, weight_decay=0.05),
    constructor='mmtr.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.75),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    # Down to 1e-6 of the head's 4e-3, and as far in each layer.
    dict(
        type='CosineAnnealingLR',
        T_max=45,
        by_epoch=True,
        begin=5,
        end=50,
        eta_min_ratio=2.5e-4,
        convert_to_iter_based=True,
    ),
]
