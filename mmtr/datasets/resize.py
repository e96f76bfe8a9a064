"""Resizing of images as torchvision does it; ``TRANSFORMS`` imports this module, and mmdet, when it is asked for it."""

import mmcv
from mmdet.datasets.transforms import Resize

from mmtr.registry import TRANSFORMS


@TRANSFORMS.register_module()
class AntialiasedResize(Resize):
    """mmdet's ``Resize``, with images by Pillow, which averages the pixels where it makes an image smaller.

    Stock ``Resize(backend='pillow')`` gives Pillow label maps too, of which it takes bytes alone, and picks other
    pixels of them than mmdet does of masks.

    Args:
        kwargs: Those of ``Resize``, without ``backend``.
    """

    def __init__(self, **kwargs):
        super().__init__(backend='pillow', **kwargs)

    def _resize_seg(self, results):
        if results.get('gt_seg_map') is not None:
            size = results['img_shape'][::-1]
            results['gt_seg_map'] = mmcv.imresize(results['gt_seg_map'], size, interpolation='nearest', backend='cv2')
