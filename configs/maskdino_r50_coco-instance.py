# The release's recipe: Mask2Former's data and schedule, 50 epochs of 16 images.
_base_ = ['mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', './_base_/models/maskdino.py']
model = dict(
    type='mmtr.MaskDINO',
    panoptic_head=dict(_delete_=True, **_base_.maskdino_head),
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
