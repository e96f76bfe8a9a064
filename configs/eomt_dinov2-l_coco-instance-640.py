_base_ = ['./_base_/models/eomt_dinov2-l.py', './_base_/eomt/coco-instance.py', './_base_/eomt/schedule.py']
model = _base_.eomt
