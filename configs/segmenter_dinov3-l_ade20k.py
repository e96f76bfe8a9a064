_base_ = ['./_base_/models/segmenter_dinov3-l.py', './_base_/segmenter/ade20k.py']
model = _base_.segmenter
