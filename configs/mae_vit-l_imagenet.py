# MAE's ViT-L/16, fine-tuned on ImageNet-1k for 50 epochs of 1024 images a step, as mmpretrain does. The head reads the
# mean of the patches. Start it from a pretrained MAE, which tools/convert_checkpoint.py --source mae converts:
#   --cfg-options model.backbone.init_cfg.checkpoint=mae_vit-l.pth
_base_ = 'mmpretrain::mae/benchmarks/vit-large-p16_8xb128-coslr-50e_in1k.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(type='mmtr.ImageClassifier', backbone=dict(type='mmtr.ClsVisionTransformer'))
