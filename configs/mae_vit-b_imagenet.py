# MAE's ViT-B/16: 100 epochs, layer decay 0.65 and drop path 0.1, as mmpretrain fine-tunes it.
_base_ = 'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(type='mmtr.ImageClassifier', backbone=dict(type='mmtr.ClsVisionTransformer'))
