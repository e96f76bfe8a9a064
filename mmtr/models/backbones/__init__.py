from .dinov2 import DINOv2
from .eva02 import EVA02
from .swin import SwinTransformer
from .vit import VisionTransformer

__all__ = ['DINOv2', 'EVA02', 'SwinTransformer', 'VisionTransformer']
