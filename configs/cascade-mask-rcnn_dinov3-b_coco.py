# The detector of ViTDet on DINOv3, whose layers all attend globally. Nothing is published for it.
_base_ = './cascade-mask-rcnn_vitdet-b_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmtr.DINOv3',
        img_size=(1024, 1024),
        patch_size=16,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        ffn='mlp',
        hidden=3072,
        num_registers=4,
        drop_path_rate=0.1,
        with_cp=True,
    )
)
