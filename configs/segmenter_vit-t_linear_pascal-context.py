_base_ = './segmenter_vit-t_pascal-context.py'
model = dict(
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=192,
        channels=192,
        num_convs=0,
        dropout_ratio=0.0,
        concat_input=False,
        num_classes=60,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    )
)
