"""What a setting is: something that has words for what it may be, and takes values that are."""

import difflib
from collections.abc import Iterable
from typing import Any, Optional

from mmtr.errors import UserError


class Unfit(ValueError):
    """A value is not what was declared."""


class Setting:
    """What a setting may be.

    ``depth`` is the number of layers of what the setting is for, where that is known.
    """

    def words(self, depth: Optional[int] = None) -> str:
        """To follow "must be"."""
        raise NotImplementedError

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """The value as code gets it: a Python number, a tuple for a list; raises ``Unfit``."""
        raise NotImplementedError

    def check(self, key: str, value: Any, depth: Optional[int] = None) -> Any:
        """As ``take``; raises a ``UserError`` that names ``key``."""
        try:
            return self.take(value, depth)
        except Unfit:
            raise UserError(f'{key}={shown(value)} must be {self.words(depth)}{self._written(value, depth)}.') from None

    def _written(self, value, depth):
        """How what was meant is written, for a whole number with a point: 1.0 could also be a share."""
        try:
            return f', written {self.take(int(value), depth)}' if isinstance(value, float) and value % 1 == 0 else ''
        except Unfit:
            return ''


def nearest(name: object, names: Iterable) -> str:
    """What to say after a misspelt name; nothing where none of ``names`` is like it."""
    like = closest(name, names)
    return f', the nearest is {like!r}' if like else ''


def closest(name: object, names: Iterable) -> Optional[str]:
    """The one of ``names`` that is most like a misspelt ``name``; None where none is."""
    return next(iter(difflib.get_close_matches(str(name), list(names), 1)), None)


def shown(value: object) -> str:
    """A value in a sentence: on one line, and not too long."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # Python writes no number of thousands of digits
        text = f'a {type(value).__name__}'
    return text if len(text) <= 80 else f'{text[:77]}...'
