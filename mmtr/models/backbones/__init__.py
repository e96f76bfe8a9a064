from importlib import import_module

from mmtr.models.backbones.beit.backbone import MAE, BEiT
from mmtr.models.backbones.eva02 import EVA02
from mmtr.models.backbones.pyramid.mit import MixVisionTransformer
from mmtr.models.backbones.pyramid.twins_svt import PCPVT, SVT
from mmtr.models.backbones.swin.backbone import SwinTransformer
from mmtr.models.backbones.vitdet.backbone import ViTDet

from .dinov2 import DINOv2
from .dinov3 import DINOv3
from .vit import VisionTransformer

# Imported on first use: its base classes are mmdet's.
_LATE = ('PyramidVisionTransformer', 'PyramidVisionTransformerV2')
__all__ = [
    'MAE',
    'BEiT',
    'DINOv2',
    'DINOv3',
    'EVA02',
    'MixVisionTransformer',
    'PCPVT',
    'PyramidVisionTransformer',
    'PyramidVisionTransformerV2',
    'SVT',
    'SwinTransformer',
    'ViTDet',
    'VisionTransformer',
]


def __getattr__(name):
    if name in _LATE:
        return getattr(import_module('mmtr.models.backbones.pyramid.pvt'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
