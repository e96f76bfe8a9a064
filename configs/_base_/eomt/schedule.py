# EoMT's optimizer and schedule (tue-mps/eomt): weight decay on everything, two warm-ups, masks that go away.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='mmtr.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.8, num_full_layers=1, decay_vectors=True),
)
# Its end, and the windows of the masks, follow from max_iters.
param_scheduler = [dict(type='mmtr.TwoStagePolyLR', warmup=(500, 1000), power=0.9, by_epoch=False)]
custom_hooks = [dict(type='mmtr.MaskAnnealingHook', power=0.9)]
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
