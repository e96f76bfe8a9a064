# mmsegmentation's SegFormer with fused attention; its weights fit.
_base_ = 'mmseg::segformer/segformer_mit-b5_8xb2-160k_ade20k-640x640.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(backbone=dict(type='mmtr.MixVisionTransformer'))
