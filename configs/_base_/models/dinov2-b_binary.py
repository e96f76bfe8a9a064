# One output channel, the foreground, with DAR's losses.
_base_ = './dinov2-b_simple.py'
model = dict(
    decode_head=dict(
        num_classes=2,
        out_channels=1,
        threshold=0.5,
        loss_decode=[
            dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True, loss_weight=1.0),
            dict(type='mmtr.BinaryDiceLoss', naive_dice=True, loss_weight=0.5),
        ],
    )
)
