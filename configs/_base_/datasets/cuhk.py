# CUHK: defocus blur, 604 images for training and 100 for testing, named in two lists.
_base_ = './binary.py'
cuhk = dict(data_root='data/CUHK', data_prefix=dict(img_path='image', seg_map_path='gt'))
train_dataloader = dict(dataset=dict(**cuhk, ann_file='train.txt'))
val_dataloader = dict(dataset=dict(**cuhk, ann_file='test.txt'))
test_dataloader = val_dataloader
