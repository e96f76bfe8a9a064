"""Lengths that suit a GPU: what a method shortens is shortened a little further, to a multiple (``multiple_of``)."""

from typing import Any

from mmtr.errors import UserError
from mmtr.settings import Maybe, Whole

MULTIPLE = Maybe(Whole(1, 1024))


def shortened(left: int, now: int, whole: int, multiple: int, least: int) -> int:
    """Shorten a sequence further to a multiple; lengths include prefix tokens. What is not shortened stays.

    Args:
        left: Length that the settings leave.
        now: Length before.
        whole: Length before any reduction. A sequence that is shorter already stays where no multiple fits.
        multiple: What the length must be a multiple of.
        least: Smallest length that the method can leave.

    Raises:
        UserError: No multiple fits.
    """
    if left == now:
        return left
    fitting = left - left % multiple
    if fitting >= least:
        return fitting
    if now < whole:
        return now
    raise UserError(
        f'token_reduction.multiple_of={multiple} does not fit: the settings leave {left} of {now} tokens, prefix '
        f'tokens included, and no multiple of it is from {least} to that: give a smaller one, or reduce less.'
    )


def shortened_grid(
    left: tuple[int, int],
    now: tuple[int, int],
    whole: tuple[int, int],
    prefix: int,
    multiple: int,
    least: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Choose fewer rows and columns so that all tokens, with ``prefix``, are a multiple; see ``shortened``.

    It is the pair with most tokens that has at least half of the rows and columns ``left``, and at least ``least``; of
    equally many tokens, the pair nearest to the proportions of ``left``.

    Raises:
        UserError: No pair fits.
    """
    if left == now or multiple == 1:
        return left
    lowest = tuple(max(-(-n // 2), few) for n, few in zip(left, least))
    best, found = (0, 0), None
    for rows in range(lowest[0], left[0] + 1):
        for columns in range(lowest[1], left[1] + 1):
            rank = rows * columns, -abs(rows * left[1] - columns * left[0])
            if (rows * columns + prefix) % multiple == 0 and (found is None or rank > best):
                best, found = rank, (rows, columns)
    if found is None and now == whole:
        raise UserError(
            f'token_reduction.multiple_of={multiple} does not fit: the settings leave a grid of {left[0]}x{left[1]} '
            f'tokens, and none from {lowest[0]}x{lowest[1]} to that, with {prefix} prefix tokens, is a multiple of it: '
            'give a smaller one, or reduce less.'
        )
    return found or now


def check_multiple(reducer: Any) -> None:
    """Raise a ``UserError`` where the ``multiple_of`` of a ``TokenReducer`` cannot work, as far as that is known."""
    backbone = reducer.backbone
    if reducer.multiple_of == 1:
        return
    if backbone.needs_grid:
        raise UserError(
            f'token_reduction.multiple_of={reducer.multiple_of} is for a plain ViT, whose tokens are one sequence: '
            'leave it out in a backbone of stages.'
        )
    if backbone.grid is not None:
        reducer.token_schedule(backbone.grid, backbone.depth)
