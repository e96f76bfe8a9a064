_base_ = 'mmseg::_base_/models/segmenter_vit-b16_mask.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EncoderDecoder',
    backbone=dict(type='mmtr.VisionTransformer'),
    decode_head=dict(type='mmtr.SegmenterMaskTransformerHead'),
)
