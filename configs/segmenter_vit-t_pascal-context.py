_base_ = ['./_base_/models/segmenter_vit-t.py', './_base_/segmenter/pascal-context.py']
model = _base_.segmenter
