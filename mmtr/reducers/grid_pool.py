"""GridPool: average-pool the patch grid before a span of layers, add the upsampled change after it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtr.ops.pooling import average_pool, cell_centres, upsample
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import SHARE, Maybe, Pair, Span
from mmtr.tokens import Tokens
from mmtr.undo import Undo

from .base import BackboneInfo, TokenReducer, default_span
from .giving_back import RESTORE


@dataclass(frozen=True)
class Upsampled(Undo):
    """Each patch gets what is interpolated between the cells around it.

    Args:
        cells: (H', W').
        grid: (H, W) of the patches.
    """

    cells: tuple[int, int]
    grid: tuple[int, int]

    def expand(self, x: Tensor) -> Tensor:
        """See ``Undo``."""
        return upsample(x, self.cells, self.grid)

    def trace(self, index: Tensor) -> Tensor:
        """See ``Undo``; the middle patch of a cell stands for those that are nearest to it."""
        rows, columns = (torch.arange(n, device=index.device) * m // n for n, m in zip(self.grid, self.cells))
        return index[:, (rows.unsqueeze(1) * self.cells[1] + columns).flatten()]


@TOKEN_REDUCERS.register_module()
class GridPool(TokenReducer):
    """A coarser grid for a span of layers: no scores, no matching, one shape for every image (ours).

    Args:
        backbone: See ``TokenReducer``.
        ratio: Share of rows and of columns that go; one number for both. At least one of each stays.
        layers: The span (a, b): tokens are pooled before layer a and upsampled after layer b - 1,
            layers counted from 0. None: from 10/24 of the depth to its end.
        restore: ``residual``: add the upsampled change of the pooled tokens to the original ones;
            ``copy``: the upsampled tokens alone.

    Raises:
        UserError: A setting cannot work, alone or with this backbone.
    """

    nothing = dict(ratio=0.0)
    within_windows = True

    def __init__(
        self,
        backbone: BackboneInfo,
        ratio: Pair(SHARE) = 0.5,
        layers: Maybe(Span()) = None,
        restore: RESTORE = 'residual',
    ):
        super().__init__(backbone)
        self.ratio, self.layers = ratio, default_span(layers, backbone.depth)
        self.restoration = restore

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """See ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.7, step=0.05),
            layers=(trial.suggest_int('start', 0, backbone.depth - 1), backbone.depth),
        )

    def _cells(self, grid):
        return tuple(max(n - round(share * n), 1) for n, share in zip(grid, self.ratio))

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Pool."""
        cells = self._cells(tokens.grid)
        start, stop = self.layers
        if i != start or i == stop or cells == tokens.grid:
            return tokens
        x = average_pool(tokens.patches, tokens.grid, cells)
        index = cell_centres(tokens.grid, cells, x.device).expand(x.shape[:2])
        size = torch.full(index.shape, tokens.grid[0] * tokens.grid[1] / index.shape[1], device=x.device)
        return tokens.reduced(x, Upsampled(cells, tokens.grid), index, size, self.restoration)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Upsample."""
        return tokens.restored() if i == self.layers[1] - 1 else tokens

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """See ``TokenReducer``."""
        start, stop = self.layers
        return [self._cells(grid) if start <= i < stop else grid for i in range(depth)]
