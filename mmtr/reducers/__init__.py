from .algm import ALGM
from .base import BackboneShape, TokenReducer, build_token_reducer
from .token_adapter import TokenAdapter
from .tome import ToMe

__all__ = ['ALGM', 'BackboneShape', 'ToMe', 'TokenAdapter', 'TokenReducer', 'build_token_reducer']
