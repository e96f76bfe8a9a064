"""Random: tokens are dropped whatever they contain."""

import math
from typing import Any

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.dropping import pseudo_random, random_rows_columns
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import SEED, SHARE, Layer, Maybe, Whole
from mmtr.tokens import Tokens

from .base import BackboneInfo, default_start
from .dropping import drop
from .giving_back import RESTORE_DROPPED
from .multiples import MULTIPLE
from .pruning import FUSION, LAYERS, LEAVING, PruneReducer


@TOKEN_REDUCERS.register_module()
class Random(PruneReducer):
    """Drop tokens at random, or all but every k-th: the baseline that any method must beat.

    In a backbone of stages, whole rows and columns are dropped, the same share of both, so that a grid is left.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        ratio: Share of the patch tokens that are dropped. None: 0.5, unless ``every``, ``r`` or ``layers`` is given.
        layer: Layer, counted from 0, before which they are dropped. None: 10/24 of the depth.
        every: In place of ``ratio``: the first of each so many tokens in raster order is kept.
        seed: Seed of the choice, which is the same for every image and batch.
        restore: Value that a dropped patch gets when tokens are restored: ``last``, the last value of its token;
            ``copy``, the nearest kept token; ``residual``, its last value plus the change of that token since.
        r, layers: In place of ``ratio`` and ``layer``: the schedule of ``PruneReducer``.
        multiple_of, fusion: See ``PruneReducer``.

    Raises:
        UserError: A setting has a value that is not allowed, alone, with another one or with this backbone.
    """

    nothing = dict(r=0, ratio=None, layer=None, every=None)
    leaves_grid = True
    every = None

    def __init__(
        self,
        backbone: BackboneInfo,
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
        if backbone.needs_grid and (often or every is not None or multiple_of or fusion != 'none'):
            raise UserError(
                'token_reduction of type Random drops rows and columns once in a backbone of stages: give ratio and '
                'layer, and leave every, r, layers, multiple_of and fusion out.'
            )
        layer = default_start(backbone.depth) if layer is None else layer
        if not often and fusion == 'llf' and layer == backbone.depth - 1:
            raise UserError(
                f"token_reduction.layer={layer} is the last layer, and with fusion='llf' it gets all tokens: give an "
                "earlier layer, or fusion='none'."
            )
        super().__init__(backbone, restore, r, layers, multiple_of, fusion)
        self.every, self.seed = every, seed
        if not often:
            self.layers = (layer - 1,)
            self.ratio = 0.5 if ratio is None else ratio
            self.r = (self.ratio,)
        if backbone.needs_grid:
            self.nothing = dict(ratio=0.0)

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.9, step=0.05),
            layer=trial.suggest_int('layer', backbone.first, backbone.depth - 1),
        )

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Drop tokens as ``PruneReducer``; in a backbone of stages, whole rows and columns."""
        if not self.backbone.needs_grid:
            return super().before_layer(i, tokens)
        left = self._left_of_grid(tokens.grid)
        if i != self.layers[0] + 1 or left == tokens.grid:
            return tokens
        kept = random_rows_columns(tokens.grid, left, self.seed, tokens.x.device)
        return drop(tokens, kept.expand(tokens.x.shape[0], -1), self.restoration)

    def score(self, i: int, tokens: Tokens) -> Tensor:
        """Score positions, (B, N), in the same way in all layers and images."""
        patches, device = tokens.grid[0] * tokens.grid[1], tokens.x.device
        if self.every is None:
            score = -pseudo_random(patches, self.seed, device)
        else:
            score = -(torch.arange(patches, device=device) % self.every)
        return score[tokens.positions]

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the rows and columns that are left in each layer, see ``TokenReducer``."""
        return [grid if i <= self.layers[0] else self._left_of_grid(grid) for i in range(depth)]

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, see ``TokenReducer``."""
        if not self.backbone.needs_grid:
            return super().token_schedule(grid, depth)
        return [rows * columns for rows, columns in self.grid_schedule(grid, depth)]

    def _gone(self, patches):
        return super()._gone(patches) if self.every is None else [patches - -(-patches // self.every)]

    def _left_of_grid(self, grid):
        share = 1 - math.sqrt(1 - self.r[0])
        return tuple(self.backbone.fitting(max(n - round(share * n), 1), n) for n in grid)
