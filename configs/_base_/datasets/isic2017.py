# ISIC 2017, part 1: skin lesions, 2000 images for training and 600 for testing.
_base_ = './binary.py'
isic = dict(data_root='data/ISIC2017', seg_map_suffix='_segmentation.png')
train_dataloader = dict(
    dataset=dict(
        **isic,
        data_prefix=dict(img_path='ISIC-2017_Training_Data', seg_map_path='ISIC-2017_Training_Part1_GroundTruth'),
    )
)
val_dataloader = dict(
    dataset=dict(
        **isic, data_prefix=dict(img_path='ISIC-2017_Test_v2_Data', seg_map_path='ISIC-2017_Test_v2_Part1_GroundTruth')
    )
)
test_dataloader = val_dataloader
