"""Backbones with spatial reduction. ``pvt`` imports mmdet, and is imported when one of its classes is met."""

from mmtr.models.backbones.common.twins import late_twin, twin_of

for _name in ('PyramidVisionTransformer', 'PyramidVisionTransformerV2'):
    twin_of(f'mmdet.models.backbones.pvt.{_name}')(late_twin(f'{__name__}.pvt', _name))
