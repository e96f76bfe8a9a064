# 24 epochs, as the release's best of this size.
_base_ = ['./_base_/models/eomt_dinov2-b.py', './_base_/eomt/coco-panoptic.py', './_base_/eomt/schedule.py']
model = _base_.eomt
train_cfg = dict(max_iters=177384)
