# 31 epochs of 1262 steps.
_base_ = ['./semantic.py', 'mmseg::_base_/datasets/ade20k.py']
crop_size = (512, 512)
train_pipeline = [*_base_.train_pipeline[:2], *_base_.augmentations]
test_pipeline = [dict(step, backend='pillow') if step['type'] == 'Resize' else step for step in _base_.test_pipeline]
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(type='IterBasedTrainLoop', max_iters=39120, val_interval=2524)
default_hooks = dict(checkpoint=dict(interval=2524))
