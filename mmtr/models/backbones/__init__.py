from .eva02 import EVA02
from .swin import SwinTransformer
from .vit import VisionTransformer

__all__ = ['EVA02', 'SwinTransformer', 'VisionTransformer']
