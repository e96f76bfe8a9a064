"""Twins of mmpretrain's plain ViTs. ``backbone`` imports mmpretrain, and is imported when one of them is met."""

from importlib import import_module

from mmtr.models.backbones.common.twins import backbone_twin, twin_of


def _late(name):
    def own():
        return getattr(import_module(f'{__name__}.backbone'), name)

    def make(module, attn_backend):
        return backbone_twin(own())(module, attn_backend)

    make.own = own
    return make


for _stock, _twin in (
    ('vision_transformer.VisionTransformer', 'ClsVisionTransformer'),
    ('deit3.DeiT3', 'DeiT3'),
    ('deit.DistilledVisionTransformer', 'DistilledVisionTransformer'),
):
    twin_of(f'mmpretrain.models.backbones.{_stock}')(_late(_twin))
