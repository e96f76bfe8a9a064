from mmtr.models.backbones.beit.backbone import MAE, BEiT
from mmtr.models.backbones.eva02.backbone import EVA02
from mmtr.models.backbones.pyramid.mit import MixVisionTransformer
from mmtr.models.backbones.swin.backbone import SwinTransformer

from .dinov2 import DINOv2
from .vit import VisionTransformer

__all__ = ['MAE', 'BEiT', 'DINOv2', 'EVA02', 'MixVisionTransformer', 'SwinTransformer', 'VisionTransformer']
