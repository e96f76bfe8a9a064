_base_ = [
    './_base_/models/eomt_dinov2-l_semantic.py',
    './_base_/eomt/cityscapes-semantic.py',
    './_base_/eomt/schedule.py',
]
model = _base_.eomt
