_base_ = ['./_base_/models/dinov2-b_binary.py', './_base_/datasets/cod.py', './_base_/dinov2_40e.py']
train_cfg = dict(max_epochs=50)
param_scheduler = [{**_base_.param_scheduler[0], 'end': 10}, {**_base_.param_scheduler[1], 'begin': 10, 'end': 50}]
