from . import backbones, decode_heads, losses, necks, segmentors
from .backbones import mmpretrain  # noqa: F401, registers the twins of its classes, and imports nothing of it

__all__ = ['backbones', 'decode_heads', 'losses', 'necks', 'segmentors']
