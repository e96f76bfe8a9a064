"""Twins of mmpretrain's plain ViTs. ``backbone`` imports mmpretrain, and is imported when one of them is met."""

from mmtr.models.backbones.common.twins import late_twin, twin_of

for _stock, _twin in (
    ('vision_transformer.VisionTransformer', 'ClsVisionTransformer'),
    ('deit3.DeiT3', 'DeiT3'),
    ('deit.DistilledVisionTransformer', 'DistilledVisionTransformer'),
):
    twin_of(f'mmpretrain.models.backbones.{_stock}')(late_twin(f'{__name__}.backbone', _twin))
