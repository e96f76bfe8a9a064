"""mmdet's detectors. Importing mmdet takes long, so a config asks for them by custom_imports."""

from mmtr.models import maskdino  # noqa: F401  registers its heads

from .cascade_rcnn import CascadeRCNN
from .mask_dino import MaskDINO
from .tta import DetTTAModel

__all__ = ['CascadeRCNN', 'DetTTAModel', 'MaskDINO']
