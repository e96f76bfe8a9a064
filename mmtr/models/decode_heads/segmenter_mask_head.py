"""mmseg's Segmenter mask head with fused attention."""
from mmseg.models.decode_heads import segmenter_mask_head as stock

from mmtr.models.twins import replace_with_twins
from mmtr.ops.attention import check_backend
from mmtr.registry import MODELS


@MODELS.register_module()
class SegmenterMaskTransformerHead(stock.SegmenterMaskTransformerHead):
    """mmseg's ``SegmenterMaskTransformerHead``: same arguments, weights and outputs.

    Args:
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.
    """

    def __init__(self, *args, attn_backend='auto', **kwargs):
        super().__init__(*args, **kwargs)
        replace_with_twins(self.layers, check_backend(attn_backend))
