_base_ = './eomt_dinov2-l.py'
model = dict(
    _delete_=True,
    type='mmtr.EncoderDecoder',
    backbone=_base_.model.backbone,
    decode_head={**_base_.model.panoptic_head, 'type': 'mmtr.EoMTSegHead'},
)
