"""Detectors of mmdet with token reduction. Configs import them by ``custom_imports``: importing mmdet takes long."""

from mmtr.models import maskdino  # noqa: F401  registers its heads

from .cascade_rcnn import CascadeRCNN
from .mask_dino import MaskDINO
from .tta import DetTTAModel

__all__ = ['CascadeRCNN', 'DetTTAModel', 'MaskDINO']
