from .segmenter_mask_head import SegmenterMaskTransformerHead

__all__ = ['SegmenterMaskTransformerHead']
