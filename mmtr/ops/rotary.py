"""Rotary position embedding of a patch grid: EVA-02 (Fang et al., Sec. 2.1), DINOv3 (Siméoni et al., Sec. 3.2)."""

from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_table(
    grid: tuple[int, int],
    channels: int,
    span: Union[float, Tensor],
    window: Optional[int] = None,
    device: Optional[torch.device] = None,
    base: float = 10000.0,
    centred: bool = False,
) -> Tensor:
    """Compute the cosine and sine of the angle by which each position of a grid rotates each pair of channels.

    The first half of the pairs is rotated by the row, the second by the column. Pair k of D / 4 turns ``base`` **
    (-k / (D / 4)) times as far as the first.

    Args:
        grid: (H, W), in patches.
        channels: Channels of a head, D, a multiple of 4.
        span: Angle by which the first pair turns from one side of the grid to the other, whatever the number of
            patches; in EVA-02 the rows, and columns, of the pretraining grid.
        window: Side of a window, in patches; positions are then those within a window, and each window has the
            ``span``. None: positions are those in the grid.
        device: Device of the table.
        base: Base of the angles' geometric sequence.
        centred: Whether angles are 0 at the centre of the grid, and patches at their centres; otherwise at the first
            patch. Tokens without a position are at angle 0.

    Returns:
        Cosines and sines (2, H * W + 1, D / 2), float32; the last position is for tokens without a position, which
        are not rotated.
    """
    bands = base ** (torch.arange(channels // 4, device=device) / -(channels // 4))

    def angles_of(n):
        side = window or n
        place = torch.arange(n, device=device) % side
        place = place + (0.5 - side / 2) if centred else place
        return (place * (span / side)).unsqueeze(1) * bands

    rows, columns = map(angles_of, grid)
    angles = torch.cat([rows.unsqueeze(1).expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)], 2)
    angles = F.pad(angles.flatten(0, 1), (0, 0, 0, 1))
    return torch.stack([angles.cos(), angles.sin()])


def evens_first(x: Tensor) -> Tensor:
    """Order channels so that neighbours, 2 i and 2 i + 1, become the pair i and i + D / 2: (..., D) -> (..., D)."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def spread_over_neighbours(table: Tensor) -> Tensor:
    """Give channels their angles as mmpretrain's EVA-02: bands follow each other twice, once in each half of a half.

    So the two channels of a pair of neighbours turn by different angles, as weights of EVA-02 were not trained.

    Args:
        table: (2, N, D / 2) of ``rotary_table``.

    Returns:
        (2, N, D), in the order of ``evens_first``.
    """
    bands = table.unflatten(-1, (2, -1))  # of rows, of columns
    return evens_first(torch.cat([bands, bands], -1).flatten(-2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of channels i and i + D / 2, in float32 or better.

    EVA-02 was trained with neighbouring channels as pairs; halves are several times faster, and the converter
    reorders the projections.

    Args:
        x: (..., heads, N, D) queries or keys.
        cos: (..., 1, N, D / 2) cosines, which broadcast to the pairs of ``x``; or (..., 1, N, D), one a channel.
        sin: (..., 1, N, D / 2 or D) sines.
    """
    first, second = x.chunk(2, -1)
    alike = cos.shape[-1] == first.shape[-1]
    (cos, other_cos), (sin, other_sin) = ((each, each) if alike else each.chunk(2, -1) for each in (cos, sin))
    return torch.cat([first * cos - second * sin, second * other_cos + first * other_sin], -1).to(x.dtype)
