# What Segmenters on this data set have in common: model = _base_.segmenter puts it into one of any size.
_base_ = ['mmseg::_base_/datasets/pascal_context.py', '../segmenter_160k.py']
crop_size = (480, 480)
segmenter = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(img_size=crop_size),
    decode_head=dict(num_classes=60),
    test_cfg=dict(crop_size=crop_size, stride=(320, 320)),
)
train_dataloader = dict(batch_size=1)
