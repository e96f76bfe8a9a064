"""ALGM: similar tokens are merged, first within small windows, later across the image."""

from typing import Any

from mmtr.errors import UserError
from mmtr.ops.bipartite import adaptive_matching, threshold_matching
from mmtr.ops.windows import window_matching
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import COSINE, Choice, Layer, Maybe, Number, Whole
from mmtr.tokens import Tokens

from .base import BackboneInfo
from .giving_back import RESTORE, RESTORE_AT, check_after_head
from .merging import MergingReducer


@TOKEN_REDUCERS.register_module()
class ALGM(MergingReducer):
    """Adaptive Local-then-Global Merging (Norouzi et al., CVPR 2024, Sec. 3).

    The number of tokens left depends on the image, see ``MergingReducer``.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        threshold: Smallest cosine similarity at which tokens merge.
        local_layer: Number of layers before windows of similar tokens merge (CLAP). None: never.
        global_layer: Number of layers, or, below 1, share of the depth, before all similar pairs of a bipartite
            matching merge (GBM). None: never.
        window: Side of a window, in patches.
        variant: ``training_free``, or ``released``, as the authors' code trains and tests: it merges between attention
            and FFN of the layers named, counted from 1; takes the threshold of GBM from the similarities of each
            image (``adaptive_matching``; the authors: of each batch); counts the class token in the matching; and
            sorts merged windows first, which changes the pairs of the matching.
        restore: Value of a restored patch: ``residual``, its own value plus the change of the token that it merged
            into; ``copy``, a copy of that token, as in the paper. None: ``residual``, or ``copy`` if released.
        restore_at: ``before_norm``; or, with ``copy``, ``after_head``: the backbone's final norm and a segmentor's
            head run on the merged tokens. None: ``before_norm``, or ``after_head`` if released with ``copy``.

    Raises:
        UserError: A setting has a value that is not allowed, alone, with another one or with this backbone.
    """

    nothing = dict(local_layer=None, global_layer=None)

    def __init__(
        self,
        backbone: BackboneInfo,
        threshold: COSINE = 0.88,
        local_layer: Maybe(Layer(-1)) = 1,
        global_layer: Maybe(Layer(-1), Number(above=0, below=1, noun='a share of the depth')) = 0.4,
        window: Whole(2, 64) = 2,
        variant: Choice('training_free', 'released') = 'training_free',
        restore: Maybe(RESTORE) = None,
        restore_at: Maybe(RESTORE_AT) = None,
    ):
        released = variant == 'released'
        if restore is None:
            restore = 'copy' if released else 'residual'
        if restore_at is None:
            restore_at = 'after_head' if released and restore == 'copy' else 'before_norm'
        super().__init__(backbone, restore)
        check_after_head(backbone, restore, restore_at)
        self.restore_at = restore_at
        if isinstance(global_layer, float):
            global_layer = round(global_layer * backbone.depth)
        for key, layer in (('local_layer', local_layer), ('global_layer', global_layer)):
            if layer is not None:
                Whole(int(released), backbone.depth - 1 + int(released)).check(f'token_reduction.{key}', layer)
        if local_layer is not None and global_layer is not None and local_layer >= global_layer:
            raise UserError(
                f'token_reduction.local_layer={local_layer} must be less than global_layer='
                f'{global_layer}: windows are of the whole grid.'
            )
        self.released, self.threshold, self.window = released, threshold, window
        self.local_layer, self.global_layer = local_layer, global_layer

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        local = trial.suggest_int('local_layer', 0, max(backbone.depth - 2, 0))
        later = trial.suggest_int('layers between', 1, max(backbone.depth - 1, 1))
        return dict(
            threshold=trial.suggest_float('threshold', 0.7, 0.98, step=0.02),
            local_layer=local,
            global_layer=local + later if local + later < backbone.depth else None,
            window=trial.suggest_int('window', 2, 4),
        )

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Merge before the layers ``local_layer`` and ``global_layer``, counted from 0, unless released."""
        return tokens if self.released else self._after(i, tokens)

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Merge between attention and FFN of these layers, counted from 1, if released."""
        return self._after(i + 1, tokens) if self.released else tokens

    def _after(self, layers, tokens):
        x, order = tokens.patches, None
        if layers == self.local_layer:
            into, alike = window_matching(x, tokens.grid, self.window, self.threshold)
            if self.released:
                order = alike.argsort(dim=1, descending=True, stable=True)
        elif layers == self.global_layer and x.shape[1] > 1:
            if self.released:
                into = adaptive_matching(x, layers, self.valid(tokens), tokens.num_prefix)
            else:
                into = threshold_matching(x, self.threshold, self.valid(tokens))
        else:
            return tokens
        return self.merged(tokens, into, order)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, for an image of one colour, in which all tokens merge."""
        schedule, n = [], grid[0] * grid[1]
        for i in range(depth):
            if i == self.local_layer:
                n = -(-grid[0] // self.window) * -(-grid[1] // self.window)
            elif i == self.global_layer:
                merging = n + 1 - (self.backbone.num_prefix % 2 if self.released else 0)
                n -= merging // 2 if n > 1 else 0
            schedule.append(n)
        return schedule

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer; if released, it follows the merging."""
        return self.token_schedule(grid, depth + 1)[1:] if self.released else self.token_schedule(grid, depth)
