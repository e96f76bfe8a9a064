"""GridPool: average-pool the patch grid before a span of layers, add the upsampled change after it."""

import torch

from mmtr.ops.pooling import average_pool, cell_centres, upsample
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import SHARE, Maybe, Pair, Span

from .base import default_span
from .restoring import RESTORE, RestoringReducer


@TOKEN_REDUCERS.register_module()
class GridPool(RestoringReducer):
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
    expansion = 'cells'

    def __init__(self, backbone, ratio: Pair(SHARE) = 0.5, layers: Maybe(Span()) = None, restore: RESTORE = 'residual'):
        super().__init__(backbone, restore)
        self.ratio, self.layers = ratio, default_span(layers, backbone.depth)
        self.stop = self.layers[1]

    @classmethod
    def search_space(cls, trial, backbone):
        """See ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.7, step=0.05),
            layers=(trial.suggest_int('start', 0, backbone.depth - 1), backbone.depth),
        )

    def _cells(self, grid):
        return tuple(max(n - round(share * n), 1) for n, share in zip(grid, self.ratio))

    def before_layer(self, i, tokens):
        """Pool."""
        cells = self._cells(tokens.grid)
        if i != self.layers[0] or i == self.stop or cells == tokens.grid:
            return tokens
        x = average_pool(tokens.patches, tokens.grid, cells)
        index = cell_centres(tokens.grid, cells, x.device).expand(x.shape[:2])
        size = torch.full(index.shape, tokens.grid[0] * tokens.grid[1] / index.shape[1], device=x.device)
        return self._reduced(
            tokens,
            tokens.replace(
                x=torch.cat([tokens.prefix, x], 1), index=index, size=size, memo={**tokens.memo, 'cells': cells}
            ),
        )

    def expand(self, tokens):
        """Upsample."""
        return upsample(tokens.patches, tokens.memo['cells'], tokens.grid)

    def grid_schedule(self, grid, depth):
        """See ``TokenReducer``."""
        return [self._cells(grid) if self.layers[0] <= i < self.stop else grid for i in range(depth)]

    def token_map(self, tokens):
        """See ``TokenReducer``; the middle patch of a cell stands for those that it is nearest to."""
        if 'cells' not in tokens.memo:
            return None
        rows, columns = (
            torch.arange(n, device=tokens.x.device) * m // n for n, m in zip(tokens.grid, tokens.memo['cells'])
        )
        slots = (rows.unsqueeze(1) * tokens.memo['cells'][1] + columns).flatten().expand(tokens.x.shape[0], -1)
        return torch.zeros_like(slots).scatter(1, tokens.index, 1), tokens.index.gather(1, slots)
