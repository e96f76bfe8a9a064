from . import backbones, decode_heads, necks, segmentors

__all__ = ['backbones', 'decode_heads', 'necks', 'segmentors']
