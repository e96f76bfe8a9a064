"""Running a reducer within each window of a token grid, for a Swin."""

from typing import Callable, Optional

import torch
from torch import Tensor

from mmtr.ops.shifted_windows import cut, gather_pieces, join_pieces, make_windows, piece_positions, places
from mmtr.tokens import Tokens

from .base import TokenReducer


class Windowed(TokenReducer):
    """A reducer on a whole token grid that runs another reducer within each window.

    The reduced windows form a smaller grid of smaller windows, on which the layers run. If the grid is no multiple of
    the window, windows at the border are smaller: no padding is scored, merged or counted, and attention pads the
    reduced grid as it pads the full one.

    ``memo['windows']`` holds the layer whose grid the tokens form, and, for each size of window, the ``Tokens`` of all
    windows of that size as the inner reducer returned them.

    Args:
        inner: Reducer that works ``leaves_grid``, built for a ``BackboneInfo`` with a stage.

    Raises:
        UserError: The inner reducer would remove all tokens of a window.
    """

    def __init__(self, inner: TokenReducer):
        super().__init__(inner.backbone)
        self.inner, self.cfg = inner, inner.cfg
        window, depth = inner.backbone.grid, inner.backbone.depth
        schedule = [window, *inner.grid_schedule(window, depth)]
        #: Layers before which the grid changes; only there the grid is cut into windows.
        self.changes = [i for i in range(depth) if schedule[i] != schedule[i + 1]]

    @property
    def name(self) -> str:
        """The name of the inner method."""
        return self.inner.name

    def at_share(self, share: float) -> 'Windowed':
        """Build a reducer that reduces each window by a share, see ``TokenReducer``."""
        return Windowed(self.inner.at_share(share))

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Run the inner reducer's ``after_layer`` and ``before_layer`` on the windows, if the grid changes here."""
        if i not in self.changes:
            return tokens

        def act(window):
            window = self.inner.after_layer(i - 1, window) if i > 0 else window
            return self.inner.before_layer(i, window)

        return self._within_windows(act, tokens, i)

    def restore(self, tokens: Tokens) -> Tokens:
        """Restore all tokens of all windows, in raster order of the grid."""
        if 'windows' not in tokens.memo:
            return tokens
        return self._within_windows(self.inner.restore, tokens, self.backbone.depth)

    def _size(self, grid: tuple[int, int], i: int) -> tuple[int, int]:
        """Return the reduced size of a window of ``grid`` in layer ``i``; after the last layer, its full size."""
        return [*self.inner.grid_schedule(grid, self.backbone.depth), grid][i]

    def _cut(self, grid: tuple[int, int]) -> list[tuple[tuple[int, int], tuple[list[int], list[int]]]]:
        """Return each size of window in ``grid``, with the rows and columns of windows that have it."""
        rows, columns = (
            {size: [start // side for start in starts] for size, starts in cut(n, side).items()}
            for n, side in zip(grid, self.backbone.grid)
        )
        return [((h, w), (rows[h], columns[w])) for h in rows for w in columns]

    def _positions(self, grid: tuple[int, int], i: int, device) -> tuple[tuple[int, int], list[Tensor]]:
        """Return the token grid (H', W') of layer ``i``, and the positions in it of the windows of each size."""
        side = self._size(self.backbone.grid, i)
        found = [
            (self._size(size, i), [[n * s for n in line] for line, s in zip(lines, side)])
            for size, lines in self._cut(grid)
        ]
        extent = tuple(max(starts[axis][-1] + size[axis] for size, starts in found) for axis in (0, 1))
        return extent, [piece_positions(*starts, size, extent[1], device) for size, starts in found]

    def _within_windows(self, act: Callable[[Tokens], Tokens], tokens: Tokens, i: int) -> Tokens:
        """Apply ``act`` to all windows, and join them to the grid of layer ``i``."""
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
        """Convert raster positions in windows (B * windows, n), None for all, to those in the grid."""
        positions = positions.repeat(window.x.shape[0] // positions.shape[0], 1)
        return positions if index is None else positions.gather(1, index)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, see ``TokenReducer``; padding of windows is not counted."""
        sizes = [
            (len(rows) * len(columns), self.inner.token_schedule(size, depth))
            for size, (rows, columns) in self._cut(grid)
        ]
        return [sum(count * schedule[i] for count, schedule in sizes) for i in range(depth)]

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map each patch to its group and its representative, see ``TokenReducer``."""
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
