_base_ = ['./_base_/models/segmenter_dinov3-b.py', './_base_/segmenter/cityscapes.py']
model = _base_.segmenter
