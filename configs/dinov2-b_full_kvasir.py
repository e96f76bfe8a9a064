_base_ = ['./_base_/models/dinov2-b_binary.py', './_base_/datasets/kvasir.py', './_base_/dinov2_40e.py']
