from .algm import ALGM
from .base import BackboneInfo, BackbonePart, TokenReducer, build_token_reducer
from .cropr import Cropr
from .cubist_merge import CubistMerge
from .dar import DAR
from .evit import EViT
from .expediting import Expediting
from .grid_pool import GridPool
from .mpm import MPM
from .random_drop import Random
from .segformer_plus_plus import SegFormerPlusPlus
from .token_adapter import TokenAdapter
from .tome import ToMe

__all__ = [
    'ALGM',
    'BackbonePart',
    'BackboneInfo',
    'Cropr',
    'CubistMerge',
    'DAR',
    'EViT',
    'Expediting',
    'GridPool',
    'MPM',
    'Random',
    'SegFormerPlusPlus',
    'ToMe',
    'TokenAdapter',
    'TokenReducer',
    'build_token_reducer',
]
