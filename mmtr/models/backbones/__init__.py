from .eva02 import EVA02
from .vit import VisionTransformer

__all__ = ['EVA02', 'VisionTransformer']
