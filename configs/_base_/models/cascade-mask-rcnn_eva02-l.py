# EVA-02's detector (baaivision/EVA, EVA-02/det): ViTDet's windows, pyramid and heads around Cascade Mask R-CNN.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
custom_imports = dict(imports=['mmtr', 'mmtr.models.detectors'], allow_failed_imports=False)
norm_cfg = dict(type='mmtr.LN2d', eps=1e-6)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmtr.EVA02',
        patch_size=16,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        mlp_ratio=8 / 3,
        with_cls_token=False,
        final_norm=False,
        drop_path_rate=0.3,
        window_size=16,
        # Layers 2, 5, 8, ..., 23 attend to the whole image.
        window_layers=[0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22],
        with_cp=True,
    ),
    neck=dict(_delete_=True, type='mmtr.SimpleFeaturePyramid', in_channels=1024, out_channels=256, norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=[
            {**head, 'type': 'Shared4Conv1FCBBoxHead', 'norm_cfg': norm_cfg} for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
