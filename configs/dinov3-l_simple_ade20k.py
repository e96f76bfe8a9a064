_base_ = './dinov3-b_simple_ade20k.py'
model = _base_.dinov3_l
