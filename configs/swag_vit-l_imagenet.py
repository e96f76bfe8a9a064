# SWAG (Singh et al., CVPR 2022), fine-tuned end to end on ImageNet-1k; to test, not to train:
#   python tools/convert_checkpoint.py --source swag vit_l16_in1k.torch swag_vit-l.pth
_base_ = ['mmpretrain::_base_/default_runtime.py', './_base_/datasets/imagenet_512.py']
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.ImageClassifier',
    backbone=dict(type='mmtr.ClsVisionTransformer', arch='l', img_size=512, patch_size=16, out_type='cls_token'),
    head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=1024),
)
