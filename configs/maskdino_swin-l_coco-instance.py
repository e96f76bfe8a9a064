# Mask2Former's Swin-S has the depths, and so the optimizer's settings, of Swin-L. 16 images a step, here on 8 GPUs.
_base_ = ['mmdet::mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py', './_base_/models/maskdino.py']
model = dict(
    type='mmtr.MaskDINO',
    backbone=dict(
        type='mmtr.SwinTransformer',
        pretrain_img_size=384,
        embed_dims=192,
        num_heads=[6, 12, 24, 48],
        window_size=12,
        init_cfg=dict(
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_large_patch4_window12_384_22k.pth'
        ),
    ),
    panoptic_head=dict(_delete_=True, **_base_.maskdino_swin_l_head),
    panoptic_fusion_head=None,
    train_cfg=None,
    test_cfg=dict(_delete_=True, instance_on=True),
)
# Crops without an object stay; the packaged config names a folder of panoptic maps too.
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(_delete_=True, img='train2017/'),
        pipeline=[
            {**step, 'keep_empty': False} if step['type'] == 'FilterAnnotations' else step
            for step in _base_.train_dataloader.dataset.pipeline
        ],
    )
)
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
