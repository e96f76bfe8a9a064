from .base import BackboneShape, TokenReducer, build_token_reducer
from .token_adapter import TokenAdapter

__all__ = ['BackboneShape', 'TokenAdapter', 'TokenReducer', 'build_token_reducer']
