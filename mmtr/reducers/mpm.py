"""MPM: pairs of tokens that are the most similar to each other are merged."""

from typing import Any

from mmtr.ops.matching import mutual_matching
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Layer, Listed, Maybe
from mmtr.tokens import Tokens

from .base import BackboneInfo
from .giving_back import RESTORE
from .merging import MergingReducer


@TOKEN_REDUCERS.register_module()
class MPM(MergingReducer):
    """Mutual Pair Merging (Ravé et al., "MPM: Mutual Pair Merging for Efficient Vision Transformers", Sec. 3).

    Two patch tokens merge if each is the most similar one to the other, by cosine similarity, into their plain mean
    in the place of the first. The number of tokens left depends on the image, see ``MergingReducer``.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        layers: Layers before which pairs merge, counted from 0. None: 2 and 5, as in the paper; of fewer than 12
            layers, 2/12 and 5/12 of the depth.
        restore: Value of a restored patch: ``residual``, its own value plus the change of the token that it merged
            into; ``copy``, a copy of that token, as in the paper.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone.
    """

    nothing = dict(layers=())

    def __init__(
        self, backbone: BackboneInfo, layers: Maybe(Listed(Layer(), rising=True)) = None, restore: RESTORE = 'residual'
    ):
        super().__init__(backbone, restore)
        self.layers = tuple(round(n * min(backbone.depth, 12) / 12) for n in (2, 5)) if layers is None else layers

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        start, gap = trial.suggest_int('start', 0, backbone.depth - 1), trial.suggest_int('gap', 1, 4)
        times = trial.suggest_int('times', 1, 4)
        return dict(layers=list(range(start, backbone.depth, gap))[:times])

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Merge mutual pairs before each of the layers named."""
        if i not in self.layers or tokens.patches.shape[1] < 2:
            return tokens
        return self.merged(tokens, mutual_matching(tokens.patches, self.valid(tokens)), weighted=False)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, for an image in which every token finds a partner."""
        schedule, n = [], grid[0] * grid[1]
        for i in range(depth):
            n -= n // 2 if i in self.layers else 0
            schedule.append(n)
        return schedule
