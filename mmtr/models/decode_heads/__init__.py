from .segmenter_mask_head import SegmenterMaskTransformerHead
from .simple_decoder import SimpleDecoder

__all__ = ['SegmenterMaskTransformerHead', 'SimpleDecoder']
