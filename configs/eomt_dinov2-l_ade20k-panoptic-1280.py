_base_ = ['./_base_/models/eomt_dinov2-l.py', './_base_/eomt/ade20k-panoptic-1280.py', './_base_/eomt/schedule.py']
model = _base_.eomt
