_base_ = ['./_base_/models/dinov2-b_binary.py', './_base_/datasets/isic2017.py', './_base_/dinov2_40e.py']
train_cfg = dict(max_epochs=20)
param_scheduler = [{**_base_.param_scheduler[0], 'end': 5}, {**_base_.param_scheduler[1], 'begin': 5, 'end': 20}]
