_base_ = './coco-instance.py'
image_size = (1280, 1280)
sizes = dict(RandomResize=dict(scale=image_size), RandomCrop=dict(crop_size=image_size), Resize=dict(scale=image_size))
eomt = dict(data_preprocessor=dict(pad_size_divisor=1280), backbone=dict(img_size=image_size))
train_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.train_dataloader.dataset.pipeline]
test_pipeline = [dict(step, **sizes.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
