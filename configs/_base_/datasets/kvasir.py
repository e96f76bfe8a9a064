# Kvasir-SEG: polyps, 880 images for training and 120 for testing, named in two lists. The masks are JPEG.
_base_ = './binary.py'
kvasir = dict(
    data_root='data/Kvasir-SEG', data_prefix=dict(img_path='images', seg_map_path='masks'), seg_map_suffix='.jpg'
)
train_dataloader = dict(dataset=dict(**kvasir, ann_file='train.txt'))
val_dataloader = dict(dataset=dict(**kvasir, ann_file='val.txt'))
test_dataloader = val_dataloader
