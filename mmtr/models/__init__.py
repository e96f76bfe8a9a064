from . import backbones, decode_heads, segmentors

__all__ = ['backbones', 'decode_heads', 'segmentors']
