# CamVid's cars against everything else: a binary task from label maps. What is unlabelled stays ignored.
_base_ = './binary_224.py'
vehicles = dict(data_root='data/camvid', foreground=[8])
train_dataloader = dict(
    dataset=dict(**vehicles, data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'))
)
val_dataloader = dict(dataset=dict(**vehicles, data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val')))
test_dataloader = val_dataloader
