"""From what a decode head says of windows to the logits and the labels of a picture, as mmseg's ``EncoderDecoder``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Optional, Union

import torch
from mmseg.models.utils import resize
from torch import Tensor

from mmtr.ops.labels import can_be_largest, first_largest

#: Logits that are enlarged at once: few enough to stay in a core's cache.
_AT_ONCE = 2**18


@dataclass(frozen=True)
class Window:
    """What a decode head says of a part of the picture.

    Args:
        logits: (B, C, h, w).
        size: (height, width) of the part, in pixels.
        corner: (y, x) where it begins.
    """

    logits: Tensor
    size: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Canvas:
    """The picture that sliding windows are summed up in: its size (height, width) and the dtype of the sum."""

    size: tuple[int, int]
    dtype: torch.dtype


def join(windows: Sequence[Window], canvas: Optional[Canvas], align_corners: bool) -> Tensor:
    """The logits (B, C, height, width) that mmseg's ``inference`` gives; ``canvas`` None: of one whole picture."""
    parts = [resize(w.logits, w.size, mode='bilinear', align_corners=align_corners) for w in windows]
    if canvas is None:
        return parts[0]
    if len(parts) == 1:
        # The sum of 0 and it, which knows no -0.
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
    """The logits of one picture of a batch, of which no more are computed at a time than are needed.

    Args:
        windows: Of the picture, so with a batch of 1. Each ``independent_of_channels``, for its size and for the last.
        canvas: See ``join``.
        align_corners: Of the decode head.
        metainfo: Of the sample, whose padding and flip are undone and whose ``ori_shape`` is given back. None: nothing.
    """

    windows: Sequence[Window]
    canvas: Optional[Canvas]
    align_corners: bool
    metainfo: Optional[dict]

    def maps(self, classes: Union[slice, Tensor] = slice(None)) -> Tensor:
        """The logits (K, height, width) of ``classes``, in order: those of mmseg's ``seg_logits``, bit by bit."""
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
        # To its own size, resizing changes nothing but what is not finite.
        if tuple(x.shape[2:]) != tuple(self.metainfo['ori_shape']) or not self._is_finite:
            x = resize(x, self.metainfo['ori_shape'], mode='bilinear', align_corners=self.align_corners, warning=False)
        return x.squeeze(0)

    def labels(self) -> Tensor:
        """The largest class of each pixel, (1, height, width) int64."""
        if not self._is_finite:
            return self.maps().argmax(0, keepdim=True)
        num_classes = self.windows[0].logits.shape[1]
        return first_largest(self._map_by_map(self._candidates()), num_classes)[None]

    def _map_by_map(self, classes):
        each = max(1, _AT_ONCE // prod(self._size))
        for some in classes.split(each):
            yield from zip(some.tolist(), self.maps(some))

    def _candidates(self):
        """Classes of which one is the largest in any pixel, as far as can be told before anything is enlarged."""
        logits, size = self.windows[0].logits[0], self.windows[0].size
        everyone = torch.arange(len(logits))
        if self.canvas is not None and (len(self.windows) > 1 or self.canvas.dtype != logits.dtype):
            return everyone
        if self.metainfo is None or self._unpadded_size == tuple(self.metainfo['ori_shape']):
            return can_be_largest(logits, 2)
        # Two pixels that are next to each other in an enlarged map come of three neighbours at most.
        enlarged = all(n <= m and n <= 1024 for n, m in zip(logits.shape[1:], size))
        return can_be_largest(logits, 3) if enlarged else everyone

    @cached_property
    def _is_finite(self):
        # Nor near the largest number of its dtype, which a sum of windows could exceed.
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
