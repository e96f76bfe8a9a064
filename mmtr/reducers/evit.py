"""EViT: the tokens that the class token attends to most are kept, the others are fused."""

import math
from typing import Any, Union

from torch import Tensor

from mmtr.ops.attention import class_attention
from mmtr.ops.dropping import fuse_tokens
from mmtr.ops.matching import gather_tokens
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Flag, Layer, Listed, Maybe, Number
from mmtr.tokens import Tokens

from .base import BackboneInfo, TokenReducer
from .dropping import drop
from .giving_back import RESTORE_DROPPED
from .multiples import MULTIPLE, shortened


@TOKEN_REDUCERS.register_module()
class EViT(TokenReducer):
    """EViT (Liang et al., "Not All Patches Are What You Need", Sec. 3), with all patches restored at the end.

    The tokens that the class token attends to most are kept (Sec. 3.2), the others are fused into their mean,
    weighted by that attention (Sec. 3.3; the released code: their weighted sum). Later layers rank the fused token as
    any other; it has no position, and is not restored.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone, which must have a class token.
        keep_rate: Share of the tokens that each of ``layers`` keeps, rounded up.
        layers: Layers, counted from 0, that reduce tokens between attention and FFN. None: 7/24, 13/24 and 19/24 of
            the depth.
        fuse: Whether the other tokens are fused; if not, they are dropped.
        restore: Value that a dropped patch gets when tokens are restored: ``last``, the last value of its token;
            ``copy``, a copy of the nearest kept token; ``residual``, its last value plus the change of that one since.
        multiple_of: Shortened sequences, prefix tokens included, are shortened further to a multiple of this.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone; there is no class token.
    """

    nothing = dict(keep_rate=1.0)
    needs_class_token = True

    def __init__(
        self,
        backbone: BackboneInfo,
        keep_rate: Number(above=0, most=1, noun='a share') = 0.8,
        layers: Maybe(Listed(Layer())) = None,
        fuse: Flag() = True,
        restore: RESTORE_DROPPED = 'residual',
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        self.keep_rate, self.fuse, self.restoration = keep_rate, fuse, restore
        if layers is None:
            layers = tuple(sorted({backbone.depth * share // 24 for share in (7, 13, 19)}))
        self.layers, self.multiple_of = layers, multiple_of or 1

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        start, count = trial.suggest_int('start', 0, backbone.depth - 1), trial.suggest_int('layers', 1, 4)
        return dict(
            keep_rate=trial.suggest_float('keep_rate', 0.4, 0.95, step=0.05),
            layers=sorted({start + (backbone.depth - start) * k // count for k in range(count)}),
            restore=trial.suggest_categorical('restore', ('last', 'residual')),
        )

    def _kept(self, i, count, grid):
        """Count the tokens that layer ``i`` keeps of ``count``; if it is all of them, nothing is fused either."""
        kept = math.ceil(self.keep_rate * count) if i in self.layers else count
        if kept == count:
            return count
        prefix = self.backbone.num_prefix
        more = self.fuse + prefix
        whole = grid[0] * grid[1] + prefix
        return shortened(kept + more, count + prefix, whole, self.multiple_of, least=1 + more) - more

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run the attention of the layer, and note the class token's attention for ``between``."""
        count = int(x.shape[1]) - tokens.num_prefix
        if self._kept(i, count, tokens.grid) == count:
            return attn.branch(x)
        q, k, v = attn.qkv(x)
        received = class_attention(*attn.positioned(q[:, :, :1], k))
        return attn.attend(q, k, v), dict(class_attention=received[:, tokens.num_prefix :])

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Keep the tokens with most attention, and fuse the others (Sec. 3.2 and 3.3)."""
        count = int(tokens.patches.shape[1])
        kept = self._kept(i, count, tokens.grid)
        if kept == count:
            return tokens
        received = tokens.memo['class_attention']
        order = received.argsort(dim=1, descending=True, stable=True)
        others, fused = order[:, kept:], None
        if self.fuse:
            fused = fuse_tokens(gather_tokens(tokens.patches, others), received.gather(1, others))
        tokens = tokens.forget('class_attention')
        return drop(tokens, order[:, :kept].sort(dim=1).values, self.restoration, fused)

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, see ``TokenReducer``; the fused token is counted."""
        schedule, count = [], grid[0] * grid[1]
        for i in range(depth):
            schedule.append(count)
            kept = self._kept(i, count, grid)
            count = count if kept == count else kept + self.fuse
        return schedule

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer, which follows the reduction."""
        return self.token_schedule(grid, depth + 1)[1:]
