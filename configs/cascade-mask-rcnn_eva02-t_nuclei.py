# A small ViTDet on images of cell nuclei, from random weights, on a CPU. Nuclei are small, so patches are of 8 pixels.
_base_ = [
    './_base_/models/cascade-mask-rcnn_eva02-l.py',
    './_base_/datasets/dsb2018_nuclei.py',
    './_base_/nuclei_600.py',
]
channels = 64
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        img_size=(256, 256),
        patch_size=8,
        embed_dims=192,
        num_layers=8,
        num_heads=3,
        ffn_norm=False,
        final_norm=True,
        drop_path_rate=0.0,
        window_size=8,
        window_layers=[0, 2, 4, 6],
        with_cp=False,
    ),
    neck=dict(in_channels=192, out_channels=channels),
    rpn_head=dict(
        in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[4], strides=[2, 4, 8, 16, 32])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, featmap_strides=[2, 4, 8, 16], finest_scale=28),
        bbox_head=[
            {**head, 'type': 'Shared2FCBBoxHead', 'in_channels': channels, 'fc_out_channels': 256, 'num_classes': 1}
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=channels, featmap_strides=[2, 4, 8, 16], finest_scale=28),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_classes=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=500),
        rcnn=[{**stage, 'sampler': {**stage.sampler, 'num': 128}} for stage in _base_.model.train_cfg.rcnn],
    ),
    # Up to 369 nuclei are in one image.
    test_cfg=dict(rcnn=dict(max_per_img=400)),
)
