"""How many tokens ToMe merges in each layer: the setting ``r``, and what it says for a depth."""

from numbers import Integral
from typing import Any, Optional

from mmtr.errors import UserError
from mmtr.settings import Either, Number, Setting, Whole


class Merging(Setting):
    """Declaration of ``r``: one number for all layers of a span, a list with one for each, or (r, inflect)."""

    _each = Either(Number(least=0, most=0.5, noun='a share', fraction=True), Whole(0, 2**20))
    _inflect = Number(least=-1, most=1)

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return (
            f'{self._each.words()}, or a list of these, one for each layer, or a tuple (r, inflect) with an '
            'inflect from -1 to 1'
        )

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if isinstance(value, tuple) and len(value) == 2:
            return self._each.take(value[0]), self._inflect.take(value[1])
        return [self._each.take(n) for n in value] if isinstance(value, list) else self._each.take(value)


def merged_in_each(r: Any, depth: int) -> list:
    """Spread a value of ``r`` over the layers of a span: whole numbers of tokens, or shares below 1.

    Raises:
        UserError: A list has not one value for each layer, or a line (r, inflect) leads beyond a half.
    """
    if isinstance(r, list):
        if len(r) != depth:
            raise UserError(
                f'token_reduction.r={r!r} has {len(r)} values for {depth} layers: give one for each layer of the span.'
            )
        return r
    if not isinstance(r, tuple):
        return [r] * depth
    value, inflect = r
    low, steps = value * (1.0 - inflect), max(depth - 1, 1)
    if isinstance(value, Integral):
        # With the released code's rounding, to the last bit.
        low = int(low)
        step = (2 * value - 2 * low) / steps
        return [int(low + step * k) for k in range(depth)]
    each = [low + (2 * value - 2 * low) * (k / steps) for k in range(depth)]
    if max(each, default=0) > 0.5:
        raise UserError(
            f'token_reduction.r={r!r} cannot work: it would merge {max(each):.2f} of the tokens in one layer, and at '
            'most 0.5 merge at once: give a smaller share, or an inflect nearer to 0.'
        )
    return each
