# binary.py at 224x224, for small models on a CPU.
_base_ = './binary.py'
crop_size = (224, 224)
train_pipeline = [
    {**step, **{key: crop_size for key in ('scale', 'crop_size') if key in step}} for step in _base_.train_pipeline
]
test_pipeline = [{**step, 'scale': crop_size} if 'scale' in step else step for step in _base_.test_pipeline]
train_dataloader = dict(num_workers=2, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
