"""Random: drop tokens without a look at them."""

import math

import torch

from mmtr.errors import UserError
from mmtr.ops.dropping import pseudo_random
from mmtr.ops.query_scores import highest
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import SEED, SHARE, Layer, Maybe, Whole

from .base import default_start
from .dropping import drop
from .giving_back import RESTORE_DROPPED
from .pruning import FUSION, LAYERS, LEAVING, MULTIPLE, PruneReducer


@TOKEN_REDUCERS.register_module()
class Random(PruneReducer):
    """Drop tokens at random, or all but every k-th: the floor that any method must beat.

    Within windows a grid must be left: there rows and columns are dropped, the same share of both.

    Args:
        backbone: See ``TokenReducer``.
        ratio: Share of the patch tokens that are dropped. None: 0.5, unless ``every``, ``r`` or ``layers`` is given.
        layer: They are dropped before this layer, counted from 0. None: 10/24 of the depth.
        every: In place of ``ratio``: keep the first of each so many tokens in raster order.
        seed: Which tokens: the same for every image, whatever its batch.
        restore: What a dropped position gets at the end: ``last``, the last value that its token had;
            ``copy``, the nearest kept token; ``residual``, its last value and the change of that one since.
        r, layers: In place of ``ratio`` and ``layer``: the schedule of ``PruneReducer``.
        multiple_of, fusion: See ``PruneReducer``.

    Raises:
        UserError: A setting cannot work, alone, with another one or with this backbone.
    """

    nothing = dict(r=0, ratio=None, layer=None, every=None)
    within_windows = True
    every = None

    def __init__(
        self,
        backbone,
        ratio: Maybe(SHARE) = None,
        layer: Maybe(Layer()) = None,
        every: Maybe(Whole(1, 2**20)) = None,
        seed: SEED = 0,
        restore: RESTORE_DROPPED = 'residual',
        r: LEAVING = None,
        layers: LAYERS = None,
        multiple_of: MULTIPLE = None,
        fusion: FUSION = 'none',
    ):
        if ratio is not None and every is not None:
            raise UserError(
                f'token_reduction.ratio={ratio!r} and every={every!r} exclude each other: give one of them.'
            )
        once, often = (
            {key: value for key, value in settings.items() if value is not None}
            for settings in (dict(ratio=ratio, layer=layer, every=every), dict(r=r, layers=layers))
        )
        if once and often:
            raise UserError(
                f'token_reduction has {", ".join(once)} and {", ".join(often)}: ratio, layer and every '
                'drop once, r and layers after several layers; give either.'
            )
        if backbone.in_windows and (often or every is not None or multiple_of or fusion != 'none'):
            raise UserError(
                'token_reduction of type Random drops rows and columns once within windows: give ratio and '
                'layer, and leave every, r, layers, multiple_of and fusion out.'
            )
        super().__init__(backbone, restore, r, layers, multiple_of, fusion)
        self.every, self.seed = every, seed
        if not often:
            self.layers = ((default_start(backbone.depth) if layer is None else layer) - 1,)
            self.r = (0.5 if ratio is None else ratio,)

    @classmethod
    def search_space(cls, trial, backbone):
        """See ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.9, step=0.05),
            layer=trial.suggest_int('layer', 0, backbone.depth - 1),
        )

    def before_layer(self, i, tokens):
        """See ``PruneReducer``; within windows whole rows and columns go."""
        if not self.backbone.in_windows:
            return super().before_layer(i, tokens)
        left = self._left_of_window(tokens.grid)
        if i != self.layers[0] + 1 or left == tokens.grid:
            return tokens
        rows, columns = (
            highest(pseudo_random(n, self.seed + axis, tokens.x.device).unsqueeze(0), count)[0]
            for axis, (n, count) in enumerate(zip(tokens.grid, left))
        )
        kept = (rows.unsqueeze(1) * tokens.grid[1] + columns).flatten()
        return drop(tokens, kept.expand(tokens.x.shape[0], -1), self.restoration)

    def _left_of_window(self, grid):
        share = 1 - math.sqrt(1 - self.r[0])
        return tuple(max(n - round(share * n), 1) for n in grid)

    def grid_schedule(self, grid, depth):
        """See ``TokenReducer``; within windows."""
        return [grid if i <= self.layers[0] else self._left_of_window(grid) for i in range(depth)]

    def token_schedule(self, grid, depth):
        """See ``TokenReducer``."""
        if not self.backbone.in_windows:
            return super().token_schedule(grid, depth)
        return [rows * columns for rows, columns in self.grid_schedule(grid, depth)]

    def _gone(self, patches):
        return super()._gone(patches) if self.every is None else [patches - -(-patches // self.every)]

    def score(self, i, tokens):
        """See ``PruneReducer``; the same for a position in all layers and images."""
        patches, device = tokens.grid[0] * tokens.grid[1], tokens.x.device
        if self.every is None:
            score = -pseudo_random(patches, self.seed, device)
        else:
            score = -(torch.arange(patches, device=device) % self.every)
        return score[tokens.positions]
