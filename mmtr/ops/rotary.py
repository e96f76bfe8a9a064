"""Rotary position embedding of a patch grid, as in EVA-02 (Fang et al., Sec. 2.1)."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_table(
    grid: tuple[int, int],
    channels: int,
    reference: int,
    window: Optional[int] = None,
    device: Optional[torch.device] = None,
) -> Tensor:
    """Cosine and sine of the angles by which each position of a grid turns its channel pairs.

    The first half of the pairs turns with the row, the second with the column. Whatever its size, the
    grid spans ``reference`` rows and columns, those of the grid that a model was pretrained on.

    Args:
        grid: (H, W), in patches.
        channels: D of a head, a multiple of 4.
        reference: Rows, and columns, of the pretraining grid.
        window: Side of windows, in patches; then each window spans them, and all windows are alike.

    Returns:
        (2, H * W + 1, D / 2), float32; the last position is that of a token without one, which is not turned.
    """
    bands = 10000 ** (torch.arange(channels // 4, device=device) / -(channels // 4))
    rows, columns = (
        (torch.arange(n, device=device) % (window or n) * (reference / (window or n))).unsqueeze(1) * bands
        for n in grid
    )
    angles = torch.cat([rows.unsqueeze(1).expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)], 2)
    angles = F.pad(angles.flatten(0, 1), (0, 0, 0, 1))
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of channels i and i + D / 2, in float32 or better.

    EVA-02 was trained on neighbouring channels as pairs; halves are several times faster, and the converter
    reorders the projections.

    Args:
        x: (..., heads, N, D).
        cos, sin: (..., 1, N, D / 2), what broadcasts to the pairs of ``x``.
    """
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
