"""The base class of declarations, and words for error messages."""

import difflib
from collections.abc import Iterable
from typing import Any, Optional

from mmtr.errors import UserError


class Unfit(ValueError):
    """Raised by ``Setting.take``: the value is not allowed."""


class Setting:
    """The allowed values of a setting.

    ``depth``, an argument of its methods, is the number of layers of the backbone; None: it is not known.
    """

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, in words that can follow "must be"."""
        raise NotImplementedError

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Convert an allowed value to what code uses, such as a tuple for a list. Raise ``Unfit`` otherwise."""
        raise NotImplementedError

    def check(self, key: str, value: Any, depth: Optional[int] = None) -> Any:
        """Convert an allowed value, as ``take``. Raise a ``UserError`` that names ``key`` otherwise."""
        try:
            return self.take(value, depth)
        except Unfit:
            raise UserError(f'{key}={shown(value)} must be {self.words(depth)}{self._written(value, depth)}.') from None

    def _written(self, value, depth):
        """Suggest 1 for 1.0 where a whole number is allowed: 1.0 could also be a share."""
        try:
            return f', written {self.take(int(value), depth)}' if isinstance(value, float) and value % 1 == 0 else ''
        except Unfit:
            return ''


def nearest(name: object, names: Iterable) -> str:
    """Suggest the name most similar to a misspelt one, as the end of a sentence; empty if none is similar."""
    like = closest(name, names)
    return f', the nearest is {like!r}' if like else ''


def closest(name: object, names: Iterable) -> Optional[str]:
    """Return the one of ``names`` that is most similar to a misspelt ``name``; None if none is similar."""
    return next(iter(difflib.get_close_matches(str(name), list(names), 1)), None)


def shown(value: object) -> str:
    """Format a value for an error message: its ``repr`` on one line, at most 80 characters."""
    try:
        text = ' '.join(repr(value).split())
    except ValueError:  # Python writes no number of thousands of digits
        text = f'a {type(value).__name__}'
    return text if len(text) <= 80 else f'{text[:77]}...'
