"""Which class is the largest in each pixel, one class after the other, so that their maps need not exist together."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

# Above it torch enlarges each channel on its own, by a kernel that does not ask how many there are.
_SMALL = 128


def first_largest(maps: Iterable[tuple[int, Tensor]], num_classes: int) -> Tensor:
    """``torch.argmax`` over the classes of a picture; of equal ones the first.

    Args:
        maps: (class, its map (H, W)), in the order of the classes; one that comes not is nowhere the largest. No NaN.
        num_classes: How many there could be.

    Returns:
        (H, W), int64.
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
        # A later class has a larger number: a product and a maximum, many times as fast as a masked write.
        torch.maximum(labels, greater.mul_(number), out=labels)
    return labels.long()


def can_be_largest(logits: Tensor, reach: int) -> Tensor:
    """Classes, in order, of which one is the largest of all in any mean of neighbours: (K,), int64.

    Left out is what in every place another class exceeds, by its smallest neighbour there, with all neighbours and
    with more than rounding can be.

    Args:
        logits: (C, h, w), finite.
        reach: Neighbours that a mean is of, in rows and columns: 2 of one bilinear resizing.
    """
    eps = max(torch.finfo(dtype).eps for dtype in (logits.dtype, torch.float32))
    logits = logits.float()
    window = [min(reach, n) for n in logits.shape[1:]]
    top = F.max_pool2d(logits, window, stride=1)
    bottom = -F.max_pool2d(-logits, window, stride=1)
    margin = (16 * eps * logits.abs().amax()).clamp(min=torch.finfo(torch.float32).tiny)
    return (top >= bottom.amax(0) - margin).flatten(1).any(1).nonzero().squeeze(1)


def independent_of_channels(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether bilinear resizing of some channels of ``x`` (B, C, h, w) on a CPU gives the bits that all would get."""
    return x.is_contiguous() and x.shape[2] * x.shape[3] > 1 and sum(size) > _SMALL
