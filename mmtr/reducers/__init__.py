from .algm import ALGM
from .base import BackboneInfo, BackbonePart, TokenReducer, build_token_reducer
from .cropr import Cropr
from .dar import DAR
from .evit import EViT
from .expediting import Expediting
from .grid_pool import GridPool
from .random_drop import Random
from .segformer_plus_plus import SegFormerPlusPlus
from .token_adapter import TokenAdapter
from .tome import ToMe

__all__ = [
    'ALGM',
    'BackbonePart',
    'BackboneInfo',
    'Cropr',
    'DAR',
    'EViT',
    'Expediting',
    'GridPool',
    'Random',
    'SegFormerPlusPlus',
    'ToMe',
    'TokenAdapter',
    'TokenReducer',
    'build_token_reducer',
]
