"""Random: drop tokens without a look at them."""
import torch

from mmtr.errors import UserError
from mmtr.ops.dropping import pseudo_random
from mmtr.registry import TOKEN_REDUCERS

from .base import check_number, check_whole, default_start
from .dropping import DropReducer


@TOKEN_REDUCERS.register_module()
class Random(DropReducer):
    """Drop tokens at random, or all but every k-th: the floor that any method must beat.

    Args:
        backbone: See ``TokenReducer``.
        ratio: Share of the patch tokens that are dropped. None: 0.5, unless ``every`` is given.
        layer: They are dropped before this layer, counted from 0. None: 10/24 of the depth.
        every: In place of ``ratio``: keep the first of each so many tokens in raster order.
        seed: Which tokens: the same for every image, whatever its batch.
        restore: What a dropped position gets at the end: ``last``, the last value that its token had;
            ``copy``, the nearest kept token; ``residual``, its last value and the change of that one since.

    Raises:
        UserError: A setting cannot work, alone, with another one or with this backbone.
    """
    nothing = dict(ratio=0., every=None)

    def __init__(self, backbone, ratio=None, layer=None, every=None, seed=0, restore='residual'):
        super().__init__(backbone, restore)
        if ratio is not None and every is not None:
            raise UserError(f'token_reduction.ratio={ratio!r} and every={every!r} exclude each other: '
                            'give one of them.')
        self.ratio = check_number('ratio', 0.5 if ratio is None else ratio, lambda r: 0 <= r < 1,
                                  'a share of at least 0 and below 1')
        layer = default_start(backbone.depth) if layer is None else layer
        self.layer = check_whole('layer', layer, 0, backbone.depth - 1)
        self.every = None if every is None else check_whole('every', every, 1)
        self.seed = check_whole('seed', seed, 0)

    @classmethod
    def search_space(cls, trial, backbone):
        """See ``TokenReducer``."""
        return dict(ratio=trial.suggest_float('ratio', 0.05, 0.9, step=0.05),
                    layer=trial.suggest_int('layer', 0, backbone.depth - 1))

    def _count(self, grid):
        """How many tokens are kept."""
        count = grid[0] * grid[1]
        return max(count - round(self.ratio * count), 1) if self.every is None else -(-count // self.every)

    def before_layer(self, i, tokens):
        """Drop."""
        positions, kept = tokens.grid[0] * tokens.grid[1], self._count(tokens.grid)
        if i != self.layer or kept == positions:
            return tokens
        if self.every is None:
            order = pseudo_random(positions, self.seed, tokens.x.device).argsort(stable=True)
            slots = order[:kept].sort().values
        else:
            slots = torch.arange(0, positions, self.every, device=tokens.x.device)
        return self._drop(tokens, slots.expand(tokens.x.shape[0], -1))

    def token_schedule(self, grid, depth):
        """See ``TokenReducer``."""
        return [self._count(grid) if i >= self.layer else grid[0] * grid[1] for i in range(depth)]
