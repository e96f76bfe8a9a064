_base_ = ['./_base_/models/segmenter_vit-l.py', './_base_/segmenter/ade20k_640.py']
model = _base_.segmenter
