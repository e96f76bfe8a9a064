from .linear_head import LinearHead
from .segmenter_mask_head import SegmenterMaskTransformerHead
from .simple_decoder import SimpleDecoder

__all__ = ['LinearHead', 'SegmenterMaskTransformerHead', 'SimpleDecoder']
