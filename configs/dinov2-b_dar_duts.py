_base_ = './dinov2-b_full_duts.py'
model = dict(type='mmtr.EncoderDecoder', backbone=dict(peft=dict(type='DAR'), token_reduction=dict(type='DAR')))
