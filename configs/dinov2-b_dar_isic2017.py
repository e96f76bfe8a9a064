_base_ = './dinov2-b_full_isic2017.py'
model = dict(backbone=dict(peft=dict(type='DAR'), token_reduction=dict(type='DAR')))
