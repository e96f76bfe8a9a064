"""Settings between those that reduce nothing and those that are configured, for a reduction that rises."""

from numbers import Real
from typing import Any

from mmtr.errors import UserError


def is_number(value: Any) -> bool:
    """Say whether a setting is a number, or numbers, one at least."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_number, value))
    return isinstance(value, Real) and not isinstance(value, bool)


def between(nothing: Any, full: Any, share: float, multiple: int = 1) -> Any:
    """Interpolate a setting linearly, each of several numbers for itself.

    Args:
        nothing: Number that reduces nothing; or one for each of ``full``.
        full: Number, or list or tuple of numbers; whole numbers are counts.
        share: 0 gives ``nothing``, 1 gives ``full``.
        multiple: Counts are rounded to a multiple of this.
    """
    if isinstance(full, (list, tuple)):
        nothing = nothing if isinstance(nothing, (list, tuple)) else [nothing] * len(full)
        return type(full)(between(a, b, share, multiple) for a, b in zip(nothing, full))
    value = nothing + share * (full - nothing)
    return value if isinstance(full, float) else multiple * round(value / multiple)


def settings_at_share(reducer: Any, share: float) -> dict:
    """Return settings by which a ``TokenReducer`` reduces by a share, in place of its own.

    Args:
        reducer: The reducer, whose ``strength`` are the settings at the share 1.
        share: 0, nothing is reduced, to 1.

    Raises:
        UserError: The method learns how much it reduces, or no number says how much it reduces.
    """
    if reducer.trained:
        raise UserError(
            f'token_reduction.type={reducer.name!r} learns how much it reduces, so that its reduction cannot rise by a '
            'rule: take mmtr.ReductionCurriculumHook out of custom_hooks.'
        )
    full = reducer.strength()
    if not full:
        raise UserError(
            f'token_reduction.type={reducer.name!r} with these settings has no number that says how much it reduces, '
            'so that its reduction cannot rise: take mmtr.ReductionCurriculumHook out of custom_hooks.'
        )
    multiple = reducer.backbone.multiple
    return {key: between(reducer.nothing[key], value, share, multiple) for key, value in full.items()}
