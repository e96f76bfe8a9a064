from mmtr.models.backbones.eva02.backbone import EVA02
from mmtr.models.backbones.pyramid.mit import MixVisionTransformer
from mmtr.models.backbones.swin.backbone import SwinTransformer
from mmtr.models.backbones.vitdet.backbone import ViTDet

from .dinov2 import DINOv2
from .vit import VisionTransformer

__all__ = ['DINOv2', 'EVA02', 'MixVisionTransformer', 'SwinTransformer', 'ViTDet', 'VisionTransformer']
