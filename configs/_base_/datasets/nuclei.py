# Nuclei of the 2018 Data Science Bowl against the background; tools/draw_masks.py draws the masks.
_base_ = './binary_224.py'
train_dataloader = dict(
    dataset=dict(
        data_root='data',
        data_prefix=dict(img_path='dsb2018_nuclei/images/train', seg_map_path='dsb2018_nuclei_masks/train'),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root='data',
        data_prefix=dict(img_path='dsb2018_nuclei/images/val', seg_map_path='dsb2018_nuclei_masks/val'),
    )
)
test_dataloader = val_dataloader
