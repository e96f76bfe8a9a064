"""ToMe: merge the most similar tokens, for good between attention and FFN, or only within each of them."""

from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.bipartite import Matching, merge, soft_matching, unmerge
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Either, Flag, Maybe, Number, Setting, Span, Whole
from mmtr.undo import Merged

from .base import TokenReducer
from .giving_back import RESTORE


class Merging(Setting):
    """How many tokens merge in each layer of a span: ``r`` of ``ToMe``."""

    _each = Either(Number(least=0, most=0.5, noun='a share', fraction=True), Whole(0, 2**20))
    _inflect = Number(least=-1, most=1)

    def words(self, depth=None):
        """See ``Setting``."""
        return (
            f'{self._each.words()}, or a list of these, one for each layer, or a tuple (r, inflect) with an '
            'inflect from -1 to 1'
        )

    def take(self, value, depth=None):
        """See ``Setting``."""
        if isinstance(value, tuple) and len(value) == 2:
            return self._each.take(value[0]), self._inflect.take(value[1])
        return [self._each.take(n) for n in value] if isinstance(value, list) else self._each.take(value)


@TOKEN_REDUCERS.register_module()
class ToMe(TokenReducer):
    """Token Merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, Sec. 3).

    Which tokens merge into which, and in which order what is left goes on, is that of the released code.

    Args:
        backbone: See ``TokenReducer``.
        mode: ``sublayer``: the normalised tokens merge before each attention and each FFN, by their
            own similarity, and unmerge after it, as ToMe is used for segmentation. ``progressive``:
            tokens merge between attention and FFN, by that of their keys, and stay merged (the paper).
        r: How many tokens merge: a count, or below 1 a share of the sequence (rounded down), never more than
            half; a list of these, one a layer of the span; or a pair (tuple) (r, inflect), which goes in
            a straight line from r (1 - inflect) to r (1 + inflect); of a count, the first end is rounded down
            before the line is drawn, with the same mean. None: 0.3, or 8 if progressive.
        layers: The span (a, b) of layers that merge, counted from 0. None: all.
        proportional_attention: Add log(size) to the attention logits of merged tokens (Eq. 1). None:
            if progressive.
        restore: If progressive: ``residual``, give each token its own value and the change of what it merged
            into, or ``copy`` the merged tokens. None: ``residual``. What a sublayer unmerges is a change already.

    Raises:
        UserError: A setting cannot work, alone or with this backbone.
    """

    nothing = dict(r=0)

    def __init__(
        self,
        backbone,
        mode: Choice('sublayer', 'progressive') = 'sublayer',
        r: Maybe(Merging()) = None,
        layers: Maybe(Span()) = None,
        proportional_attention: Maybe(Flag()) = None,
        restore: Maybe(RESTORE) = None,
    ):
        super().__init__(backbone)
        self.restoration = restore or 'residual'
        self.progressive = mode == 'progressive'
        if restore is not None and not self.progressive:
            raise UserError(
                f"token_reduction.restore={restore!r} is for mode='progressive': a sublayer adds what it "
                'unmerges to the tokens, so leave restore out.'
            )
        self.layers = (0, backbone.depth) if layers is None else layers
        if r is None:
            r = 8 if self.progressive else 0.3
        self.r = _schedule(r, self.layers[1] - self.layers[0])
        self.proportional = self.progressive if proportional_attention is None else proportional_attention

    @property
    def caution(self):
        """See ``TokenReducer``."""
        if self.backbone.embed_dims >= 384 or not any(self.r):
            return ''
        return (
            f'ToMe matches tokens in every layer, which costs a backbone of {self.backbone.embed_dims} channels '
            'about what it saves, or more: see tools/benchmark.py, or reduce once, as GridPool does.'
        )

    @classmethod
    def search_space(cls, trial, backbone):
        """See ``TokenReducer``."""
        mode = trial.suggest_categorical('mode', ('sublayer', 'progressive'))
        most = 0.5 if mode == 'sublayer' else 0.2  # of each layer; progressive merging adds up
        return dict(
            mode=mode,
            r=trial.suggest_float(f'r of {mode}', 0.02, most, step=0.02),
            layers=(trial.suggest_int('start', 0, backbone.depth - 1), backbone.depth),
        )

    def _count(self, i: int, n: int) -> int:
        """How many of ``n`` tokens merge in layer ``i``."""
        start, stop = self.layers
        if not start <= i < stop:
            return 0
        r = self.r[i - start]
        return int(r * n) if r < 1 else min(r, n // 2)

    def attention(self, i, attn, x, tokens):
        """Attention on merged tokens, or, if progressive, on all of them, noting which merge after it."""
        patches = x[:, tokens.num_prefix :]
        count = self._count(i, int(patches.shape[1]))
        if self.progressive:
            q, k, v = attn.qkv(x)
            out = attn.attend(q, k, v, self._bias(tokens.size, tokens.num_prefix))
            if count == 0:
                return out
            keys = k[:, :, tokens.num_prefix :].detach().mean(1, dtype=torch.float32)
            return out, dict(matching=soft_matching(keys, count, tokens.num_prefix))
        if count == 0:
            return attn.branch(x)
        matching = soft_matching(patches, count, tokens.num_prefix)
        merged, size = _merge(x, tokens.num_prefix, matching)
        q, k, v = attn.qkv(merged, matching.kept)
        out = attn.attend(q, k, v, self._bias(size, tokens.num_prefix), matching.kept)
        return _unmerge(out, tokens.num_prefix, matching), dict(matching=matching)  # for pictures

    def _bias(self, size, num_prefix):
        if size is None or not self.proportional:
            return None
        return F.pad(size.log(), (num_prefix, 0))[:, None, None]

    def between(self, i, tokens):
        """Merge for good, if progressive; the size-weighted mean."""
        if not self.progressive or 'matching' not in tokens.memo:
            return tokens
        matching = tokens.memo['matching']
        x, size = merge(tokens.patches, matching, tokens.size)
        return _merged(tokens.forget('matching'), x, size, matching, self.restoration)

    def ffn(self, i, ffn, x, tokens):
        """The FFN, on merged tokens unless progressive."""
        patches = x[:, tokens.num_prefix :]
        count = 0 if self.progressive else self._count(i, int(patches.shape[1]))
        if count == 0:
            return ffn(x)
        matching = soft_matching(patches, count, tokens.num_prefix)
        merged, _ = _merge(x, tokens.num_prefix, matching)
        return _unmerge(ffn(merged), tokens.num_prefix, matching)

    def after_layer(self, i, tokens):
        """Forget the layer's matching."""
        return tokens.forget('matching')

    def token_schedule(self, grid, depth):
        """See ``TokenReducer``."""
        schedule, n = [], grid[0] * grid[1]
        for i in range(depth):
            count = self._count(i, n)
            schedule.append(n if self.progressive else n - count)
            n -= count if self.progressive else 0
        return schedule

    def token_map(self, tokens):
        """See ``TokenReducer``; in ``sublayer`` mode, how tokens merge for the layer's attention."""
        if self.progressive or 'matching' not in tokens.memo:
            return super().token_map(tokens)
        matching = tokens.memo['matching']
        x, size = merge(tokens.patches, matching)
        return super().token_map(_merged(tokens, x, size, matching, 'copy'))


def _schedule(r, depth):
    """``r`` of each of ``depth`` layers, whole numbers or shares below 1."""
    if isinstance(r, tuple) and len(r) == 2:
        value, inflect = r
        _check_r(r, value)
        if not isinstance(inflect, (int, float)) or not -1 <= inflect <= 1:
            raise UserError(
                f'token_reduction.r={r!r} has the inflection {inflect!r}: choose -1, falling to 0, to 1, rising from 0.'
            )
        low, steps = value * (1.0 - inflect), max(depth - 1, 1)
        if isinstance(value, Integral):
            # With the released code's rounding, to the last bit.
            low = int(low)
            step = (2 * value - 2 * low) / steps
            each = [int(low + step * k) for k in range(depth)]
        else:
            each = [low + (2 * value - 2 * low) * (k / steps) for k in range(depth)]
    elif isinstance(r, list):
        if len(r) != depth:
            raise UserError(
                f'token_reduction.r={r!r} has {len(r)} values for {depth} layers: give one for each layer of the span.'
            )
        each = r
    else:
        each = [r] * depth
    for value in each:
        _check_r(r, value)
    return each


def _check_r(r, value):
    if isinstance(value, Integral) and value >= 0 or isinstance(value, float) and 0 <= value <= 0.5:
        return
    raise UserError(
        f'token_reduction.r={r!r} cannot work: give a whole number of tokens, or a share of 0.0 '
        'to 0.5, since at most half of them merge at once, or a list of these, or (r, inflect).'
    )


def _merged(tokens, x, size, matching, restore):
    return tokens.reduced(x, Merged(matching.slots()), tokens.positions.gather(1, matching.kept), size, restore)


def _merge(x: Tensor, num_prefix: int, matching: Matching) -> tuple[Tensor, Tensor]:
    merged, size = merge(x[:, num_prefix:], matching)
    return torch.cat([x[:, :num_prefix], merged], 1), size


def _unmerge(x: Tensor, num_prefix: int, matching: Matching) -> Tensor:
    return torch.cat([x[:, :num_prefix], unmerge(x[:, num_prefix:], matching)], 1)
