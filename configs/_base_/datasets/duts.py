# DUTS: salient objects, 10553 images for training and 5019 for testing.
_base_ = './binary.py'
train_dataloader = dict(
    dataset=dict(data_root='data/DUTS/DUTS-TR', data_prefix=dict(img_path='DUTS-TR-Image', seg_map_path='DUTS-TR-Mask'))
)
val_dataloader = dict(
    dataset=dict(data_root='data/DUTS/DUTS-TE', data_prefix=dict(img_path='DUTS-TE-Image', seg_map_path='DUTS-TE-Mask'))
)
test_dataloader = val_dataloader
