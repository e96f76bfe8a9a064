"""Resizing of predicted masks to the image, for models whose images are padded."""

import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor


class Enlarging:
    """Resizes masks of one image to its padded input, and from there to the image.

    Args:
        sample: Data sample, with the sizes of the image.
        rescale: Whether results have the size of the original image, or that of the input.
    """

    def __init__(self, sample: DetDataSample, rescale: bool):
        meta = sample.metainfo
        #: (height, width) of the padded input, of the image within it, and of the result.
        self.padded, self.seen = tuple(meta['batch_input_shape']), tuple(meta['img_shape'][:2])
        self.shape = tuple(meta['ori_shape'][:2]) if rescale else self.seen

    def to_input(self, masks: Tensor) -> Tensor:
        """Resize masks to the padded input: (N, h, w) -> (N, height, width)."""
        return _resized(masks, self.padded)

    def to_image(self, maps: Tensor) -> Tensor:
        """Cut the padding off maps of the padded input, and resize them to the result."""
        maps = maps[..., : self.seen[0], : self.seen[1]]
        return maps if self.shape == self.seen else _resized(maps, self.shape)

    def __call__(self, masks: Tensor) -> Tensor:
        """Resize masks (N, h, w) to the result."""
        return self.to_image(self.to_input(masks))


def _resized(maps, size):
    return F.interpolate(maps.unsqueeze(1), size, mode='bilinear', align_corners=False).squeeze(1)
