from .base import BackboneShape, TokenReducer, build_token_reducer
from .evit import EViT
from .expediting import Expediting
from .random_drop import Random
from .token_adapter import TokenAdapter

__all__ = ['BackboneShape', 'EViT', 'Expediting', 'Random', 'TokenAdapter', 'TokenReducer',
           'build_token_reducer']
