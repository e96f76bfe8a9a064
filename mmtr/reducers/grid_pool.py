"""GridPool: the patch grid is average-pooled before a span of layers, and upsampled after it."""

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
from .multiples import MULTIPLE, shortened_grid
from .residual_code import restoration


@dataclass(frozen=True)
class Upsampled(Undo):
    """Bilinear upsampling of pooled cells to the patch grid.

    Args:
        cells: (H', W') of the pooled grid.
        grid: (H, W) of the patch grid.
    """

    cells: tuple[int, int]
    grid: tuple[int, int]

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        return upsample(x, self.cells, self.grid)

    def trace(self, index: Tensor) -> Tensor:
        """Map each patch to its representative, the patch in the centre of its cell."""
        rows, columns = (torch.arange(n, device=index.device) * m // n for n, m in zip(self.grid, self.cells))
        return index[:, (rows.unsqueeze(1) * self.cells[1] + columns).flatten()]


@TOKEN_REDUCERS.register_module()
class GridPool(TokenReducer):
    """Average pooling to a coarser grid for a span of layers, without scores or matching (ours).

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        ratio: Share of rows and of columns that are removed; one number for both. At least one of each is left.
        layers: Span (a, b), counted from 0: tokens are pooled before layer a and upsampled after layer b - 1. None:
            from 10/24 of the depth to its end.
        restore: Value of a restored patch: ``residual``, its own value plus the upsampled change of the pooled tokens;
            ``copy``, the upsampled tokens; ``learned``, see ``ResidualCode``.
        multiple_of: What is left, with prefix tokens, is reduced further to a multiple of this, by rows and columns.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone.
    """

    nothing = dict(ratio=0.0)
    leaves_grid = True

    def __init__(
        self,
        backbone: BackboneInfo,
        ratio: Pair(SHARE) = 0.5,
        layers: Maybe(Span()) = None,
        restore: RESTORE = 'residual',
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        self.ratio, self.layers = ratio, default_span(layers, backbone.depth)
        self.restoration = restoration(restore, backbone)
        self.multiple_of = multiple_of or 1

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.7, step=0.05),
            layers=(trial.suggest_int('start', backbone.first, backbone.depth - 1), backbone.depth),
        )

    def _cells(self, grid):
        left = (max(n - round(share * n), 1) for n, share in zip(grid, self.ratio))
        left = tuple(map(self.backbone.fitting, left, grid))
        return shortened_grid(left, grid, grid, self.backbone.num_prefix, self.multiple_of)

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Pool the grid before the first layer of the span."""
        start, stop = self.layers
        if i != start or i == stop:
            return tokens
        cells = self._cells(tokens.grid)
        if cells == tokens.grid:
            return tokens
        x = average_pool(tokens.patches, tokens.grid, cells)
        index = cell_centres(tokens.grid, cells, x.device).expand(x.shape[:2])
        size = torch.full(index.shape, tokens.grid[0] * tokens.grid[1] / index.shape[1], device=x.device)
        return tokens.reduced(x, Upsampled(cells, tokens.grid), index, size, self.restoration)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Restore the patch grid after the last layer of the span."""
        return tokens.restored() if i == self.layers[1] - 1 else tokens

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the token grid in each layer, see ``TokenReducer``."""
        start, stop = self.layers
        return [self._cells(grid) if start <= i < stop else grid for i in range(depth)]
