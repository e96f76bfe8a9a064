"""A reducer within each window of a grid."""

from typing import Callable, Optional

import torch
from torch import Tensor

from mmtr.ops.shifted_windows import cut, gather_pieces, join_pieces, make_windows, piece_positions, places
from mmtr.tokens import Tokens

from .base import TokenReducer


class Windowed(TokenReducer):
    """The reducer ``inner`` within each window, on the tokens of a whole grid.

    What it leaves of the windows is a smaller grid of smaller windows, which the layers go on with. Where the
    grid is no multiple of the window, the windows at the border hold what is left: no padding is scored, merged
    or counted, and attention pads the smaller grid as it pads the full one.

    ``memo['windows']`` is the layer whose grid the tokens form, and what the inner reducer made of all windows of
    one size, for each size.

    Args:
        inner: A reducer that works ``within_windows``, built for a ``BackboneInfo`` with a stage.

    Raises:
        UserError: It would leave nothing of a window.
    """

    def __init__(self, inner: TokenReducer):
        super().__init__(inner.backbone)
        self.inner = inner
        window, depth = inner.backbone.grid, inner.backbone.depth
        schedule = [window, *inner.grid_schedule(window, depth)]
        #: Before these layers the grid changes; only there windows are taken apart.
        self.changes = [i for i in range(depth) if schedule[i] != schedule[i + 1]]

    @property
    def name(self) -> str:
        """Of the inner method."""
        return self.inner.name

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """What the inner reducer does between two layers, where the grid changes."""
        if i not in self.changes:
            return tokens

        def act(window):
            window = self.inner.after_layer(i - 1, window) if i > 0 else window
            return self.inner.before_layer(i, window)

        return self._within_windows(act, tokens, i)

    def restore(self, tokens: Tokens) -> Tokens:
        """All tokens in raster order."""
        if 'windows' not in tokens.memo:
            return tokens
        return self._within_windows(self.inner.restore, tokens, self.backbone.depth)

    def _size(self, grid: tuple[int, int], i: int) -> tuple[int, int]:
        """What is left of a window of ``grid`` in layer ``i``; after the last layer: all of it."""
        return [*self.inner.grid_schedule(grid, self.backbone.depth), grid][i]

    def _cut(self, grid: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[list[int], list[int]]]]:
        """The sizes that windows of ``grid`` have, and in which rows and columns of windows they are."""
        rows, columns = (
            {size: [start // side for start in starts] for size, starts in cut(n, side).items()}
            for n, side in zip(grid, self.backbone.grid)
        )
        return [((h, w), (rows[h], columns[w])) for h in rows for w in columns]

    def _positions(self, grid: tuple[int, int], i: int, device) -> tuple[tuple[int, int], list[Tensor]]:
        """The grid (H', W') that tokens form in layer ``i``, and where those of the windows of each size are in it."""
        side = self._size(self.backbone.grid, i)
        found = [
            (self._size(size, i), [[n * s for n in line] for line, s in zip(lines, side)])
            for size, lines in self._cut(grid)
        ]
        extent = tuple(max(starts[axis][-1] + size[axis] for size, starts in found) for axis in (0, 1))
        return extent, [piece_positions(*starts, size, extent[1], device) for size, starts in found]

    def _within_windows(self, act: Callable[[Tokens], Tokens], tokens: Tokens, i: int) -> Tokens:
        """``act`` on the windows; it leaves of them what there is in layer ``i``."""
        device, full = tokens.x.device, self.backbone.depth
        before, windows = tokens.memo.get('windows', (full, None))
        _, positions = self._positions(tokens.grid, before, device)
        parts = gather_pieces(tokens.x, positions)
        if windows is None:
            windows = [Tokens(part, size) for part, (size, _) in zip(parts, self._cut(tokens.grid))]
        windows = [act(window.replace(x=part)) for window, part in zip(windows, parts)]

        grid, positions = self._positions(tokens.grid, i, device)
        place = places(torch.cat([p.flatten() for p in positions]), grid[0] * grid[1])
        x = join_pieces([window.x for window in windows], positions, place)
        tokens = tokens.replace(
            x=x,
            windows=make_windows(grid, self._size(self.backbone.grid, i), device, self.inner.table_interpolation),
            index=None,
        ).forget('windows')
        if grid == tokens.grid:
            return tokens
        index = [
            self._in_grid(window.index, window, whole)
            for window, whole in zip(windows, self._positions(tokens.grid, full, device)[1])
        ]
        index = join_pieces([part.unsqueeze(2) for part in index], positions, place).squeeze(2)
        return tokens.replace(index=index).remember(windows=(i, windows))

    @staticmethod
    def _in_grid(index, window, positions):
        """Raster positions in windows (B * windows, n), None for all, as those in the grid."""
        positions = positions.repeat(window.x.shape[0] // positions.shape[0], 1)
        return positions if index is None else positions.gather(1, index)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """See ``TokenReducer``; padding is not counted."""
        sizes = [
            (len(rows) * len(columns), self.inner.token_schedule(size, depth))
            for size, (rows, columns) in self._cut(grid)
        ]
        return [sum(count * schedule[i] for count, schedule in sizes) for i in range(depth)]

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """See ``TokenReducer``."""
        if 'windows' not in tokens.memo:
            return None
        _, positions = self._positions(tokens.grid, self.backbone.depth, tokens.x.device)
        place = places(torch.cat([p.flatten() for p in positions]), tokens.grid[0] * tokens.grid[1])
        groups, stands_for = [], []
        for window, whole in zip(tokens.memo['windows'][1], positions):
            own = self._in_grid(None, window, whole)
            found = self.inner.token_map(window)
            groups.append(torch.ones_like(own) if found is None else found[0])
            stands_for.append(own if found is None else self._in_grid(found[1], window, whole))
        return tuple(
            join_pieces([part.unsqueeze(2) for part in parts], positions, place).squeeze(2)
            for parts in (groups, stands_for)
        )
