_base_ = 'mmseg::_base_/models/segmenter_vit-b16_mask.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EncoderDecoder',
    backbone=dict(type='mmtr.VisionTransformer'),
    decode_head=dict(type='mmtr.SegmenterMaskTransformerHead'),
)
# In place of the mask head; decode_head of the *_linear_* configs.
linear_head = dict(
    type='FCNHead',
    num_convs=0,
    dropout_ratio=0.0,
    concat_input=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
)
