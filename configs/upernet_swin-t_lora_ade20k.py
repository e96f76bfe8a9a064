_base_ = './upernet_swin-t_ade20k.py'
model = dict(backbone=dict(peft=dict(type='LoRA')))
