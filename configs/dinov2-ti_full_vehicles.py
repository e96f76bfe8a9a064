_base_ = ['./_base_/models/dinov2-ti_binary.py', './_base_/datasets/camvid_vehicles.py', './_base_/dinov2_40e.py']
optim_wrapper = dict(optimizer=dict(lr=1e-3))
