"""The token grid that a patch embedding makes."""

from typing import Optional

from torch import nn


def embedded_grid(conv: nn.Conv2d, padding: Optional[nn.Module], shape: tuple[int, int]) -> tuple[int, int]:
    """Count the rows and columns of tokens of an image, or map, of ``shape`` (height, width).

    Args:
        conv: The convolution of the patch embedding.
        padding: The ``AdaptivePadding`` before it; None: only that of the convolution.
        shape: (height, width) of what is embedded.
    """
    added = padding.get_pad_shape(shape) if padding else [2 * n for n in conv.padding]
    return tuple(
        (n + more - dilation * (side - 1) - 1) // step + 1
        for n, more, side, step, dilation in zip(shape, added, conv.kernel_size, conv.stride, conv.dilation)
    )
