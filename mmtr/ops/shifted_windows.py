"""The windows of a grid that its tokens attend within, shifted or not (Swin, Liu et al., ICCV 2021, Sec. 3.2)."""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(length: int, window: int, shift: int = 0) -> dict[int, list[int]]:
    """Cut a line into pieces of ``window``: length of a piece -> where pieces of that length start.

    The first piece is ``shift`` long, unless that is 0; the last one is what is left.
    """
    cuts = [0, *range(shift or window, length, window), length]
    pieces: dict[int, list[int]] = {}
    for start, stop in zip(cuts, cuts[1:]):
        pieces.setdefault(stop - start, []).append(start)
    return pieces


def piece_positions(
    rows: list[int], columns: list[int], size: tuple[int, int], width: int, device: Optional[torch.device] = None
) -> Tensor:
    """Raster positions of the tokens of all pieces that start at one of ``rows`` and one of ``columns``.

    Args:
        size: (h, w) of a piece.
        width: Columns of the grid.

    Returns:
        (pieces, h * w).
    """
    rows, columns = (
        torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(n, device=device)
        for starts, n in zip((rows, columns), size)
    )
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def places(positions: Tensor, count: int) -> Tensor:
    """Where in ``positions`` (M,) each of the numbers 0 to ``count`` - 1 is, which it holds once: (count,).

    ``positions`` may hold ``count`` itself, for padding, any number of times.
    """
    found = positions.new_zeros(count + 1)
    return found.scatter(0, positions, torch.arange(len(positions), device=positions.device))[:-1]


def relative_positions(window: tuple[int, int], device: Optional[torch.device] = None) -> Tensor:
    """Which entry of its relative position table each query and key of a (h, w) window have: (h, w, h, w).

    The table has an entry for each of (2 h - 1) * (2 w - 1) offsets.
    """
    rows, columns = (
        line.unsqueeze(1) - line + len(line) - 1 for line in (torch.arange(n, device=device) for n in window)
    )
    return rows[:, None, :, None] * (2 * window[1] - 1) + columns[None, :, None, :]


@dataclass(frozen=True)
class Layout:
    """A grid in pieces: tokens attend to each other within one.

    Args:
        sizes: (h, w) that pieces have.
        positions: For each size (pieces, h * w), the raster positions of their tokens; H * W for padding.
        place: (H * W,) where each token is when all pieces are in a row.
        padded: Whether there is padding.
    """

    sizes: list[tuple[int, int]]
    positions: list[Tensor]
    place: Tensor
    padded: bool


@dataclass(frozen=True)
class Windows:
    """The windows of a grid.

    Args:
        grid: (H, W).
        window: (h, w).
        layouts: Without and with shift.
        relative: (h, w, h, w) of ``relative_positions``.
        interpolation: How a position table of larger windows is resized to these.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    layouts: tuple[Layout, Layout]
    relative: Tensor
    interpolation: str = 'bicubic'


def make_windows(
    grid: tuple[int, int],
    window: tuple[int, int],
    device: Optional[torch.device] = None,
    interpolation: str = 'bicubic',
) -> Windows:
    """The windows of a grid, which is padded at the bottom and on the right to a multiple of them.

    Shifted windows are shifted by half a window, rounded down. Those that Swin's cyclic shift wraps around are
    cut at the border instead: the same tokens attend to each other, and no mask is needed.
    """
    shifts = ((0, 0), (window[0] // 2, window[1] // 2))
    layouts = tuple(_layout(grid, window, shift, device) for shift in shifts)
    return Windows(grid, window, layouts, relative_positions(window, device), interpolation)


def _layout(grid, window, shift, device):
    (height, width), padding = grid, [-n % side for n, side in zip(grid, window)]
    rows, columns = (cut(n + pad, side, by) for n, pad, side, by in zip(grid, padding, window, shift))
    raster = torch.arange(height * width, device=device).view(grid)
    raster = F.pad(raster, (0, padding[1], 0, padding[0]), value=height * width).flatten()
    sizes = [(h, w) for h in rows for w in columns]
    positions = [raster[piece_positions(rows[h], columns[w], (h, w), width + padding[1], device)] for h, w in sizes]
    place = places(torch.cat([index.flatten() for index in positions]), height * width)
    return Layout(sizes, positions, place, any(padding))


def gather_pieces(x: Tensor, positions: list[Tensor]) -> list[Tensor]:
    """Bring the tokens of each piece together: (B, N, ...) -> (B * P, n, ...) for each of ``positions`` (P, n)."""
    return [x.index_select(1, index.flatten()).unflatten(1, index.shape).flatten(0, 1) for index in positions]


def join_pieces(parts: list[Tensor], positions: list[Tensor], place: Tensor) -> Tensor:
    """Undo ``gather_pieces``, with ``place`` from ``places`` of all positions."""
    parts = [part.unflatten(0, (-1, len(index))).flatten(1, 2) for part, index in zip(parts, positions)]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return joined.index_select(1, place)
