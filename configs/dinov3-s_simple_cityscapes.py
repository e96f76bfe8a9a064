_base_ = './dinov3-b_simple_cityscapes.py'
model = _base_.dinov3_s
