_base_ = ['./_base_/models/eomt_dinov3-l.py', './_base_/eomt/coco-instance.py', './_base_/eomt/schedule_dinov3.py']
model = _base_.eomt
