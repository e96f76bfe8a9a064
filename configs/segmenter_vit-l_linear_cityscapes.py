_base_ = './segmenter_vit-l_cityscapes.py'
model = dict(
    decode_head=dict(
        _delete_=True,
        **_base_.linear_head,
        in_channels=_base_.model.decode_head.in_channels,
        channels=_base_.model.decode_head.channels,
        num_classes=_base_.model.decode_head.num_classes,
    )
)
