"""CubistMerge: neighbours in rows and columns are merged before a span of layers, so that a smaller grid is left."""

from typing import Any

from mmtr.ops.neighbours import MERGES, METRICS, merge_rows_columns
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Maybe, Number, Pair, Span
from mmtr.tokens import Tokens
from mmtr.undo import Merged

from .base import BackboneInfo, TokenReducer, default_span
from .giving_back import RESTORE
from .multiples import MULTIPLE, shortened_grid
from .residual_code import restoration


@TOKEN_REDUCERS.register_module()
class CubistMerge(TokenReducer):
    """CubistMerge (Gong, Lis, "CubistMerge: Spatial-Preserving Token Merging For Diverse ViT Backbones", Sec. 3).

    Every second token of a row may merge into the more similar of its two neighbours. In each row as many do, those
    most similar to their neighbour; then the same happens in each column of what is left. So a grid is left, but its
    rows and columns are not those of the image.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        ratio: Share of rows and of columns that are removed; one number for both. At most half of each go.
        layers: Span (a, b), counted from 0: tokens merge before layer a and are restored after layer b - 1. None:
            from 10/24 of the depth to its end.
        metric: Similarity of neighbours: ``cosine``, as in the paper, or ``euclidean``.
        merge: Value of merged tokens: ``max``, in each channel the value of largest magnitude, as in the paper;
            ``average``, the mean of the patches.
        restore: Value of a restored patch: ``residual``, its own value plus the change of the token that it merged
            into; ``copy``, a copy of that token, as in the paper; ``learned``, see ``ResidualCode``.
        multiple_of: What is left, with prefix tokens, is reduced further to a multiple of this, by rows and columns.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone.
    """

    nothing = dict(ratio=0.0)
    leaves_grid = True

    def __init__(
        self,
        backbone: BackboneInfo,
        ratio: Pair(Number(least=0, most=0.5, noun='a share')) = 0.3,
        layers: Maybe(Span()) = None,
        metric: Choice(*METRICS) = 'cosine',
        merge: Choice(*MERGES) = 'max',
        restore: RESTORE = 'residual',
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        self.ratio, self.layers = ratio, default_span(layers, backbone.depth)
        self.metric, self.merge, self.restoration = metric, merge, restoration(restore, backbone)
        self.multiple_of = multiple_of or 1

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.5, step=0.05),
            layers=(trial.suggest_int('start', backbone.first, backbone.depth - 1), backbone.depth),
            metric=trial.suggest_categorical('metric', METRICS),
            merge=trial.suggest_categorical('merge', MERGES),
        )

    def _left(self, grid):
        halves = tuple(n - n // 2 for n in grid)
        left = (max(n - round(share * n), half) for n, share, half in zip(grid, self.ratio, halves))
        left = tuple(map(self.backbone.fitting, left, grid, halves))
        return shortened_grid(left, grid, grid, self.backbone.num_prefix, self.multiple_of, least=halves)

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Merge neighbours before the first layer of the span."""
        grid, (start, stop) = tokens.grid, self.layers
        if i != start or i == stop:
            return tokens
        r = tuple(n - left for n, left in zip(grid, self._left(grid)))
        if r == (0, 0):
            return tokens
        x, size, index, slots = merge_rows_columns(tokens.patches, grid, r, self.metric, self.merge)
        return tokens.reduced(x, Merged(slots), index, size, self.restoration)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Restore the patch grid after the last layer of the span."""
        return tokens.restored() if i == self.layers[1] - 1 else tokens

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the token grid in each layer, see ``TokenReducer``."""
        start, stop = self.layers
        return [self._left(grid) if start <= i < stop else grid for i in range(depth)]
