# From random weights, hence a higher rate than for fine-tuning.
_base_ = ['./_base_/models/dinov2-ti_binary.py', './_base_/datasets/nuclei.py', './_base_/dinov2_40e.py']
optim_wrapper = dict(optimizer=dict(lr=1e-3))
