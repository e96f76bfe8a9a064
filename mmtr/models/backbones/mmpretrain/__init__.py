"""Twins of mmpretrain's backbones. Their modules import mmpretrain, and are imported when one of them is met."""

from mmtr.models.backbones.common.twins import late_twin, twin_of

for _stock, _module, _twin in (
    ('vision_transformer.VisionTransformer', 'backbone', 'ClsVisionTransformer'),
    ('deit3.DeiT3', 'backbone', 'DeiT3'),
    ('deit.DistilledVisionTransformer', 'backbone', 'DistilledVisionTransformer'),
    ('beit.BEiTViT', 'beit', 'BEiTViT'),
    ('vit_eva02.ViTEVA02', 'eva02', 'ViTEVA02'),
    ('vit_sam.ViTSAM', 'sam', 'ViTSAM'),
    ('swin_transformer_v2.SwinTransformerV2', 'swin_v2', 'SwinTransformerV2'),
):
    twin_of(f'mmpretrain.models.backbones.{_stock}')(late_twin(f'{__name__}.{_module}', _twin))
