# What EoMTs of mmdet have in common: a square of 640 pixels, filled up with black; batches of 16 on 4 GPUs.
_base_ = 'mmdet::_base_/default_runtime.py'
image_size = (640, 640)
data_preprocessor = dict(
    type='DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=640, pad_mask=True, pad_seg=True, seg_pad_value=255
)
# Pillow averages the pixels where it makes an image smaller, as the release does. The jitter is of fitting into the
# square.
resize = dict(
    type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), resize_type='mmtr.AntialiasedResize', keep_ratio=True
)
crop = dict(
    type='RandomCrop', crop_type='absolute', crop_size=image_size, recompute_bbox=True, allow_negative_crop=True
)
fit = dict(type='Resize', scale=image_size, keep_ratio=True, backend='pillow')
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
panoptic_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations'),
    dict(type='RandomFlip', prob=0.5),
    resize,
    # Crops without a thing stay: there is stuff in them. The release draws a crop without either again.
    crop,
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
    dict(type='PackDetInputs'),
]
# The release draws a crop without an object again from the same image; mmdet takes another image.
instance_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    resize,
    dict(crop, allow_negative_crop=False),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=True),
    dict(type='PackDetInputs'),
]
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
