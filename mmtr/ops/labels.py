"""Argmax over classes, one class map at a time, so that the maps of all classes need not be in memory together."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this height plus width of the output, the kernel of torch resizes each channel on its own.
_SMALL = 128


def first_largest(maps: Iterable[tuple[int, Tensor]], num_classes: int) -> Tensor:
    """Compute the argmax over the classes of an image; of equal logits, the first class.

    Args:
        maps: Pairs of class index and its logits (H, W), in ascending order of classes, without NaN. A class that is
            nowhere the largest may be left out.
        num_classes: Number of all classes.

    Returns:
        Class indices (H, W), int64.
    """
    maps = iter(maps)
    first, largest = next(maps)
    largest = largest.clone()
    dtype = torch.uint8 if num_classes <= 256 else torch.int32
    labels = torch.full_like(largest, first, dtype=dtype)
    greater = torch.empty_like(labels)
    for number, each in maps:
        torch.gt(each, largest, out=greater)
        torch.maximum(largest, each, out=largest)
        # A later class has a larger index, so a product and a maximum set it, much faster than a masked write.
        torch.maximum(labels, greater.mul_(number), out=labels)
    return labels.long()


def can_be_largest(logits: Tensor, reach: int) -> Tensor:
    """Find the classes that can be the largest at some pixel of the resized logits: (K,), int64, ascending.

    A class is left out if at every place another class exceeds it: if the smallest logit of that class among the
    neighbours is above the largest of its own, by more than rounding errors.

    Args:
        logits: (C, h, w) logits before resizing, finite.
        reach: Number of neighbours, in rows and in columns, that a resized pixel is a weighted mean of: 2 for one
            bilinear resizing.
    """
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, torch.float32))
    logits = logits.float()
    window = [min(reach, n) for n in logits.shape[1:]]
    top = F.max_pool2d(logits, window, stride=1)
    bottom = -F.max_pool2d(-logits, window, stride=1)
    margin = (16 * eps * logits.abs().amax()).clamp(min=torch.finfo(torch.float32).tiny)
    return (top >= bottom.amax(0) - margin).flatten(1).any(1).nonzero().squeeze(1)


def independent_of_channels(x: Tensor, size: tuple[int, int]) -> bool:
    """Say whether bilinear resizing of single channels of ``x`` (B, C, h, w) on a CPU is bit-equal to that of all."""
    return x.is_contiguous() and x.shape[2] * x.shape[3] > 1 and sum(size) > _SMALL
