# On DINOv3: twice the rate, longer warm-ups, and the last four layers, those with queries, are not decayed.
_base_ = './schedule.py'
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(num_full_layers=4))
param_scheduler = [dict(type='mmtr.TwoStagePolyLR', warmup=(2000, 3000), power=0.9, by_epoch=False)]
