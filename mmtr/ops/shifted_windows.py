"""Windows and shifted windows of a token grid (Swin, Liu et al., ICCV 2021, Sec. 3.2)."""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(length: int, window: int, shift: int = 0) -> dict[int, list[int]]:
    """Cut one axis of a grid into pieces of ``window`` tokens, and group their starts by the length of the piece.

    Args:
        length: Number of tokens along the axis.
        window: Length of a piece; the last one may be shorter.
        shift: Length of the first piece; 0: ``window``.

    Returns:
        Length of a piece -> starts of all pieces of that length.
    """
    cuts = [0, *range(shift or window, length, window), length]
    pieces: dict[int, list[int]] = {}
    for start, stop in zip(cuts, cuts[1:]):
        pieces.setdefault(stop - start, []).append(start)
    return pieces


def piece_positions(
    rows: list[int], columns: list[int], size: tuple[int, int], width: int, device: Optional[torch.device] = None
) -> Tensor:
    """Return the raster positions of the tokens of all pieces of one size.

    Args:
        rows: First rows of the pieces.
        columns: First columns of the pieces; each pair of row and column is one piece.
        size: (h, w) of a piece.
        width: Number of columns of the grid.
        device: Device of the positions.

    Returns:
        (pieces, h * w).
    """
    rows, columns = (
        torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(n, device=device)
        for starts, n in zip((rows, columns), size)
    )
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def places(positions: Tensor, count: int) -> Tensor:
    """Invert a permutation that may contain padding: find where each position is in a list.

    Args:
        positions: (M,) each of 0 to ``count`` - 1 once, and ``count`` for padding, any number of times.
        count: Number of positions.

    Returns:
        Index in ``positions`` of each of 0 to ``count`` - 1: (count,).
    """
    found = positions.new_zeros(count + 1)
    return found.scatter(0, positions, torch.arange(len(positions), device=positions.device))[:-1]


def relative_positions(window: tuple[int, int], device: Optional[torch.device] = None) -> Tensor:
    """Return the index into the relative position table of each query and key of a (h, w) window: (h, w, h, w).

    The table has an entry for each of (2 h - 1) * (2 w - 1) offsets.
    """
    rows, columns = (
        line.unsqueeze(1) - line + len(line) - 1 for line in (torch.arange(n, device=device) for n in window)
    )
    return rows[:, None, :, None] * (2 * window[1] - 1) + columns[None, :, None, :]


@dataclass(frozen=True)
class Layout:
    """A grid cut into pieces, windows or parts of shifted windows; tokens attend within their piece.

    Args:
        sizes: (h, w) of the pieces, each size once.
        positions: For each size, raster positions of the tokens of its pieces (pieces, h * w); H * W for padding.
        place: (H * W,) index of each token in the concatenation of all pieces.
        padded: Whether there is padding.
    """

    sizes: list[tuple[int, int]]
    positions: list[Tensor]
    place: Tensor
    padded: bool


@dataclass(frozen=True)
class Windows:
    """The windows of a grid, without and with shift.

    Args:
        grid: (H, W) of the tokens.
        window: (h, w) of a window, in tokens.
        layouts: Layouts without and, in a Swin, with shift.
        relative: (h, w, h, w) indices of ``relative_positions``; None: there is no table of these.
        interpolation: ``bicubic`` or ``bilinear``, the mode that resizes a relative position table to ``window``.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    layouts: tuple[Layout, ...]
    relative: Optional[Tensor] = None
    interpolation: str = 'bicubic'


def make_windows(
    grid: tuple[int, int],
    window: tuple[int, int],
    device: Optional[torch.device] = None,
    interpolation: str = 'bicubic',
) -> Windows:
    """Make the windows of a grid, which is padded at the bottom and on the right to a multiple of the window.

    The shift is half a window, rounded down. Windows that Swin's cyclic shift wraps around are cut at the border
    instead: the same tokens attend to each other, and no mask is needed.

    Args:
        grid: (H, W) of the tokens.
        window: (h, w) of a window, in tokens.
        device: Device of the positions.
        interpolation: See ``Windows``.
    """
    shifts = ((0, 0), (window[0] // 2, window[1] // 2))
    layouts = tuple(make_layout(grid, window, shift, device=device) for shift in shifts)
    return Windows(grid, window, layouts, relative_positions(window, device), interpolation)


def make_layout(
    grid: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    fill: bool = True,
    device: Optional[torch.device] = None,
) -> Layout:
    """Cut a grid into windows, or parts of shifted windows.

    Args:
        grid: (H, W) of the tokens.
        window: (h, w) of a window, in tokens.
        shift: (h, w) of the first window; 0: those of any other.
        fill: Whether padding at the bottom and on the right fills the last windows; otherwise these are smaller.
        device: Device of the positions.
    """
    (height, width), padding = grid, [-n % side if fill else 0 for n, side in zip(grid, window)]
    rows, columns = (cut(n + pad, side, by) for n, pad, side, by in zip(grid, padding, window, shift))
    raster = torch.arange(height * width, device=device).view(grid)
    raster = F.pad(raster, (0, padding[1], 0, padding[0]), value=height * width).flatten()
    sizes = [(h, w) for h in rows for w in columns]
    positions = [raster[piece_positions(rows[h], columns[w], (h, w), width + padding[1], device)] for h, w in sizes]
    place = places(torch.cat([index.flatten() for index in positions]), height * width)
    return Layout(sizes, positions, place, any(padding))


def gather_pieces(x: Tensor, positions: list[Tensor]) -> list[Tensor]:
    """Gather the tokens of each piece: (B, N, ...) -> (B * P, n, ...) for each of ``positions`` (P, n)."""
    return [x.index_select(1, index.flatten()).unflatten(1, index.shape).flatten(0, 1) for index in positions]


def join_pieces(parts: list[Tensor], positions: list[Tensor], place: Tensor) -> Tensor:
    """Join the pieces of ``gather_pieces`` to (B, N, ...); ``place`` is ``places`` of all positions."""
    parts = [part.unflatten(0, (-1, len(index))).flatten(1, 2) for part, index in zip(parts, positions)]
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return joined.index_select(1, place)
