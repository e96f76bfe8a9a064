"""The base class of methods that drop the tokens of lowest score by a schedule."""

from itertools import accumulate
from typing import Optional, Union

from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.query_scores import highest
from mmtr.settings import SHARE, Choice, Either, Layer, Listed, Maybe, OneOrMore, Whole
from mmtr.tokens import Tokens

from .base import BackboneInfo, TokenReducer
from .dropping import drop
from .multiples import shortened

#: Share of patches that Token Cropr drops in EVA-02-L: 880 of 1024, 40 after each of 22 layers.
PUBLISHED_SHARE = 55 / 64
# Declarations of the settings of the schedule.
LEAVING = Maybe(OneOrMore(Either(SHARE, Whole(1, 2**20))))
LAYERS = Maybe(Listed(Layer(spared=1), rising=True))
FUSION = Choice('llf', 'none')


class PruneReducer(TokenReducer):
    """Base class of pruning methods: after each of some layers, the patch tokens of lowest ``score`` are dropped.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        restore: Value that a dropped patch gets when tokens are restored, see ``drop``.
        r: Number of patch tokens dropped after each of ``layers``; below 1, a share of the patches of the grid; or a
            list with one value for each of ``layers``. None: 55/64 of the patches, in equal parts.
        layers: Layers, counted from 0, after which tokens are dropped. None: all but the last two.
        multiple_of: Shortened sequences, prefix tokens included, are shortened further to a multiple of this. None:
            they are not.
        fusion: ``llf``, last layer fusion: tokens are restored before the last layer; ``none``: after it.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone; ``r`` leaves no token of the
            grid (at the first forward, or at once if the backbone knows the size of its images).
    """

    def __init__(
        self,
        backbone: BackboneInfo,
        restore: str,
        r: Union[float, tuple[float, ...], None],
        layers: Optional[tuple[int, ...]],
        multiple_of: Optional[int],
        fusion: str,
    ):
        super().__init__(backbone)
        self.restoration, self.fusion = restore, fusion
        self.layers = self._checked_layers(layers)
        self.r = self._checked_r(r)
        self.multiple_of = multiple_of or 1
        # Rows and columns of a grid go once, whatever the rate.
        self.rate = None if backbone.needs_grid else 1.0
        if backbone.grid is not None and not backbone.needs_grid:  # else the grid is not that of training images
            self.token_schedule(backbone.grid, backbone.depth)

    def _checked_layers(self, layers):
        depth = self.backbone.depth
        if layers is None:
            return tuple(range(depth - 2))
        if layers and layers[-1] == depth - 2 and self.fusion == 'llf':
            raise UserError(
                f"token_reduction.layers={layers!r}: with fusion='llf' what left after layer "
                f'{depth - 2} would be back at once in the last layer; end with layer {depth - 3}.'
            )
        return layers

    def _checked_r(self, r):
        count = len(self.layers)
        if r is None:
            r = PUBLISHED_SHARE / max(count, 1)
        values = r if isinstance(r, tuple) else (r,) * count
        if len(values) != count:
            raise UserError(
                f'token_reduction.r={r!r} has {len(values)} values, but tokens leave after {count} '
                f'layers, {list(self.layers)}: give one value each.'
            )
        if sum(value for value in values if value < 1) >= 1:
            raise UserError(
                f'token_reduction.r={r!r} after {count} layers is all tokens: the shares must sum to less than 1.'
            )
        return values

    def score(self, i: int, tokens: Tokens) -> Tensor:
        """Score the patch tokens after layer ``i``, (B, N); those of lowest score are dropped."""
        raise NotImplementedError

    def _gone(self, patches: int) -> list[int]:
        """Count the patches dropped until after each of ``layers``, at a ``rate`` of 1."""
        return [round(n) for n in accumulate(r if r >= 1 else r * patches for r in self.r)]

    def _left(self, grid, gone):
        patches, prefix = grid[0] * grid[1], self.backbone.num_prefix
        if gone == 0:
            return patches
        whole, length = patches + prefix, patches - gone + prefix
        # Too short is another fault, of r, which is said below.
        left = shortened(length, whole, whole, self.multiple_of, least=length - self.multiple_of) - prefix
        if left < 1 and any(r >= 1 for r in self.r):
            raise UserError(
                f'token_reduction.r={self.r[0] if len(set(self.r)) == 1 else list(self.r)} after {len(self.r)} layers '
                f'takes {gone} of the {patches} patches of a {grid[0]}x{grid[1]} grid away, and none would be left: '
                'give less, or a share below 1, which fits any image.'
            )
        return max(left, 1)

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Drop tokens, or restore them for the last layer, as the schedule says for layer ``i``."""
        left, now = self.token_schedule(tokens.grid, i + 1)[i], tokens.patches.shape[1]
        if left > now:
            return tokens.restored()
        return tokens if left == now else drop(tokens, highest(self.score(i - 1, tokens), left), self.restoration)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, see ``TokenReducer``; in training, at the current ``rate``."""
        patches, rate = grid[0] * grid[1], self.rate if self.training else 1.0
        gone = {layer + 1: round(rate * n) for layer, n in zip(self.layers, self._gone(patches))}
        schedule, left = [], patches
        for i in range(depth):
            left = self._left(grid, gone[i]) if i in gone else left
            schedule.append(patches if self.fusion == 'llf' and i == self.backbone.depth - 1 else left)
        return schedule
