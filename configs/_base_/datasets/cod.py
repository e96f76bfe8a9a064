# Camouflaged objects: 3040 images of COD10K and 1000 of CAMO for training, the 2026 of COD10K for testing. The 250 of
# CAMO: --cfg-options test_dataloader.dataset.data_root=data/COD/TestDataset/CAMO
_base_ = './binary.py'
data_prefix = dict(img_path='Imgs', seg_map_path='GT')
train_dataloader = dict(dataset=dict(data_root='data/COD/TrainDataset', data_prefix=data_prefix))
val_dataloader = dict(dataset=dict(data_root='data/COD/TestDataset/COD10K', data_prefix=data_prefix))
test_dataloader = val_dataloader
