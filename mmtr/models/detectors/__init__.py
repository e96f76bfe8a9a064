"""mmdet's detectors. Importing mmdet takes long, so a config asks for them by custom_imports."""
from .cascade_rcnn import CascadeRCNN

__all__ = ['CascadeRCNN']
