# From random weights, hence a higher rate than for fine-tuning. Crops of 20x27 patches.
_base_ = ['./_base_/models/dinov2-b_simple.py', './_base_/datasets/camvid.py', './_base_/dinov2_40e.py']
crop_size = (280, 378)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size, embed_dims=192, num_heads=3),
    decode_head=dict(in_channels=192, num_classes=11),
)
train_pipeline = [{**step, 'crop_size': crop_size} if 'crop_size' in step else step for step in _base_.train_pipeline]
train_dataloader = dict(
    batch_size=10, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dict(pipeline=train_pipeline)
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
