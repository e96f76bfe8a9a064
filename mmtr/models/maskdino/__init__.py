"""MaskDINO (Li et al., CVPR 2023) in parts: pixel decoder, queries, decoder, denoising, matching, losses, inference.

It is built from mmdet's layers, so it is imported by ``mmtr.models.detectors`` only.
"""

from .fusion import MaskDINOFusionHead
from .head import MaskDINOHead

__all__ = ['MaskDINOFusionHead', 'MaskDINOHead']
