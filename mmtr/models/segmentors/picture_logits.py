"""Logits and labels of an image from the logits of its windows, as mmseg's ``EncoderDecoder`` computes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Optional, Union

import torch
from mmseg.models.utils import resize
from torch import Tensor

from mmtr.ops.labels import can_be_largest, first_largest

#: Number of logits that are resized at a time: few enough for the cache of a core.
_AT_ONCE = 2**18


@dataclass(frozen=True)
class Window:
    """The logits of a sliding window, or of a whole image.

    Args:
        logits: (B, C, h, w) logits of a decode head.
        size: (height, width) of the window, in pixels.
        corner: (y, x) of its upper left corner, in pixels.
    """

    logits: Tensor
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Canvas:
    """The image that the logits of sliding windows are summed up in.

    Args:
        size: (height, width) in pixels.
        dtype: Dtype of the sum.
    """

    size: tuple[int, int]
    dtype: torch.dtype


def join(windows: Sequence[Window], canvas: Optional[Canvas], align_corners: bool) -> Tensor:
    """Join the logits of windows to those of the image, as mmseg's ``inference``: (B, C, height, width).

    Args:
        windows: Windows of the image.
        canvas: Canvas of sliding windows; None: there is one window, the whole image.
        align_corners: As in the decode head.
    """
    parts = [resize(w.logits, w.size, mode='bilinear', align_corners=align_corners) for w in windows]
    if canvas is None:
        return parts[0]
    if len(parts) == 1:
        # As the sum of 0 and the part: it turns -0 to 0.
        return parts[0].to(canvas.dtype).add_(0)
    total = parts[0].new_zeros(*parts[0].shape[:2], *canvas.size, dtype=canvas.dtype)
    count = total.new_zeros(1, 1, *canvas.size)
    for window, part in zip(windows, parts):
        rows, columns = (slice(start, start + n) for start, n in zip(window.corner, window.size))
        total[:, :, rows, columns] += part
        count[:, :, rows, columns] += 1
    return total.div_(count)


@dataclass(frozen=True)
class PictureLogits:
    """The logits of one image of a batch, computed for some classes at a time.

    Args:
        windows: Windows of the image, with a batch of 1. Resizing their logits to the window, and those of the image
            to ``ori_shape``, must be ``independent_of_channels``.
        canvas: See ``join``.
        align_corners: As in the decode head.
        metainfo: Metainfo of the sample: its padding and flip are undone, and logits are resized to its ``ori_shape``.
            None: they stay as they are.
    """

    windows: Sequence[Window]
    canvas: Optional[Canvas]
    align_corners: bool
    metainfo: Optional[dict]

    def maps(self, classes: Union[slice, Tensor] = slice(None)) -> Tensor:
        """Compute the logits (K, height, width) of ``classes``, in order, bit-equal to mmseg's ``seg_logits``."""
        with torch.autocast('cpu', enabled=False):
            return self._maps([Window(w.logits[:, classes].contiguous(), w.size, w.corner) for w in self.windows])

    def _maps(self, windows):
        x = join(windows, self.canvas, self.align_corners)
        if self.metainfo is None:
            return x.squeeze(0)
        left, right, top, bottom = self._padding
        x = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
        if self.metainfo.get('flip'):
            directions = dict(horizontal=3, vertical=2)
            x = x.flip(dims=(directions[self.metainfo['flip_direction']],))
        # Resizing to the same size changes only logits that are not finite.
        if tuple(x.shape[2:]) != tuple(self.metainfo['ori_shape']) or not self._is_finite:
            x = resize(x, self.metainfo['ori_shape'], mode='bilinear', align_corners=self.align_corners, warning=False)
        return x.squeeze(0)

    def labels(self) -> Tensor:
        """Compute the argmax over classes of each pixel: (1, height, width) int64."""
        if not self._is_finite:
            return self.maps().argmax(0, keepdim=True)
        num_classes = self.windows[0].logits.shape[1]
        return first_largest(self._map_by_map(self._candidates()), num_classes)[None]

    def _map_by_map(self, classes):
        each = max(1, _AT_ONCE // prod(self._size))
        for some in classes.split(each):
            yield from zip(some.tolist(), self.maps(some))

    def _candidates(self):
        """Return the classes that may be the largest at some pixel, from the logits before resizing."""
        logits, size = self.windows[0].logits[0], self.windows[0].size
        everyone = torch.arange(len(logits))
        if self.canvas is not None and (len(self.windows) > 1 or self.canvas.dtype != logits.dtype):
            return everyone
        if self.metainfo is None or self._unpadded_size == tuple(self.metainfo['ori_shape']):
            return can_be_largest(logits, 2)
        # Two adjacent pixels of an enlarged map depend on at most three neighbours along each axis.
        enlarged = all(n <= m and n <= 1024 for n, m in zip(logits.shape[1:], size))
        return can_be_largest(logits, 3) if enlarged else everyone

    @cached_property
    def _is_finite(self):
        # Also False near the largest number of the dtype, which a sum of windows could exceed.
        return all(
            bool(w.logits.abs().max() < torch.finfo(w.logits.dtype).max / (16 * len(self.windows)))
            for w in self.windows
        )

    @property
    def _padding(self):
        meta = self.metainfo
        return meta['img_padding_size'] if 'img_padding_size' in meta else meta.get('padding_size', [0] * 4)

    @property
    def _size(self):
        return self.windows[0].size if self.canvas is None else self.canvas.size

    @property
    def _unpadded_size(self):
        left, right, top, bottom = self._padding
        return self._size[0] - top - bottom, self._size[1] - left - right
