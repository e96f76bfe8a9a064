# 107 epochs of 186 steps. Test images have their size already.
_base_ = ['./semantic.py', 'mmseg::_base_/datasets/cityscapes.py']
crop_size = (1024, 1024)
sizes = dict(RandomResize=dict(scale=crop_size), RandomCrop=dict(crop_size=crop_size), Pad=dict(size=crop_size))
eomt = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size),
    decode_head=dict(num_classes=19),
    test_cfg=dict(crop_size=crop_size, stride=crop_size),
)
train_pipeline = [
    *_base_.train_pipeline[:2],
    *(dict(step, **sizes.get(step['type'], {})) for step in _base_.augmentations),
]
train_dataloader = dict(batch_size=4, num_workers=4, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=19902, val_interval=1860)
default_hooks = dict(checkpoint=dict(interval=1860))
