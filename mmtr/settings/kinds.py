"""Declarations of numbers, choices, layers, texts, and lists of these."""

from numbers import Integral, Real
from typing import Any, Optional

from .base import Setting, Unfit


class Either(Setting):
    """Any of several declarations, ``options``; the first one that fits converts the value."""

    def __init__(self, *options):
        self.options = options

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return ', or '.join(option.words(depth) for option in self.options)

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        for option in self.options:
            try:
                return option.take(value, depth)
            except Unfit:
                pass
        raise Unfit


class Maybe(Either):
    """None, or any of several declarations."""

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'{super().words(depth)}, or None'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        return None if value is None else super().take(value, depth)


class Number(Setting):
    """A finite number within bounds.

    Args:
        least: Smallest allowed number; None: ``above`` is the lower bound.
        most: Largest allowed number, unless ``below`` is given.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
        noun: What the number is, for error messages and tables, such as ``a share``.
        fraction: Whether it must be a float, since an int would mean something else.
    """

    def __init__(
        self,
        least: Optional[float] = None,
        most: float = 1e6,
        above: Optional[float] = None,
        below: Optional[float] = None,
        noun: str = 'a number',
        fraction: bool = False,
    ):
        self.least, self.most, self.above, self.below = least, None if below is not None else most, above, below
        self.noun, self.fraction = noun, fraction

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        low = f'above {self.above:.10g}' if self.least is None else f'of at least {self.least:.10g}'
        high = f'below {self.below:.10g}' if self.most is None else f'up to {self.most:.10g}'
        both = self.least is not None and self.most is not None
        return f'{self.noun} ' + (f'from {self.least:.10g} to {self.most:.10g}' if both else f'{low}, {high}')

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if isinstance(value, bool) or not isinstance(value, Real) or self.fraction and isinstance(value, Integral):
            raise Unfit
        value = int(value) if isinstance(value, Integral) else float(value)
        fits = (value > self.above if self.least is None else value >= self.least) and (
            value < self.below if self.most is None else value <= self.most
        )
        if not fits:  # as NaN
            raise Unfit
        return value


class Whole(Setting):
    """An int within bounds; floats are refused.

    Args:
        low: Smallest allowed number.
        high: Largest allowed number.
        odd: Whether it must be odd.
    """

    def __init__(self, low: int, high: int, odd: bool = False):
        self.low, self.high, self.odd = low, high, odd

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'{"an odd" if self.odd else "a whole"} number from {self.low} to {self.high}'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if (
            isinstance(value, bool)
            or not isinstance(value, Integral)
            or not self.low <= value <= self.high
            or (self.odd and value % 2 == 0)
        ):
            raise Unfit
        return int(value)


class Layer(Setting):
    """The index of a layer, counted from 0.

    Args:
        spared: Number of last layers that are not allowed. -1 also allows the index behind the last layer.
    """

    def __init__(self, spared: int = 0):
        self.spared = spared

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        if depth is None:
            return f'a layer, from 0 to depth{f" - {self.spared + 1}" if self.spared + 1 else ""}'
        return self._range(depth).words()

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        return self._range(depth).take(value)

    def _range(self, depth):
        return Whole(0, depth - 1 - self.spared)


class Span(Setting):
    """A span of layers, as the pair (a, b) of its first layer and the one after its last."""

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'a span of layers (a, b), 0 <= a <= b <= {"depth" if depth is None else depth}'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        start, stop = _items(value, 2, 2, Whole(0, depth))
        if start > stop:
            raise Unfit
        return start, stop


class Choice(Setting):
    """One of several words, ``values``."""

    def __init__(self, *values):
        self.values = values

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'one of {", ".join(self.values)}'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if not isinstance(value, str) or value not in self.values:
            raise Unfit
        return str(value)


class Letters(Setting):
    """Any of the letters in a string, ``letters``, as a list or one string; code gets a tuple."""

    def __init__(self, letters: str):
        self.letters = letters

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'some of {", ".join(self.letters)}, as a list or a text'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        return _items(list(value) if isinstance(value, str) else value, 0, len(self.letters), Choice(*self.letters))


class Flag(Setting):
    """True or False; other values, such as 0 or 1, are refused."""

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return 'True or False'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if not isinstance(value, bool):
            raise Unfit
        return value


class Text(Setting):
    """A string that is not empty; ``noun`` says what it is, for error messages and tables."""

    def __init__(self, noun: str = 'a text'):
        self.noun = noun

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return self.noun

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if not isinstance(value, str) or not value:
            raise Unfit
        return str(value)


class Pair(Setting):
    """One value for both axes, or a pair of values; code gets the pair.

    Args:
        of: Declaration of each value.
        axes: Names of the axes, for error messages and tables.
    """

    def __init__(self, of: Setting, axes: str = '(rows, columns)'):
        self.of, self.axes = of, axes

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'{self.of.words(depth)}, or two for {self.axes}'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if isinstance(value, (list, tuple)):
            return _items(value, 2, 2, self.of, depth)
        return (self.of.take(value, depth),) * 2


class Listed(Setting):
    """A list or tuple; code gets a tuple.

    Args:
        of: Declaration of each item.
        least: Smallest allowed number of items.
        most: Largest allowed number of items.
        rising: Whether each item must be larger than the one before.
    """

    def __init__(self, of: Setting, least: int = 0, most: int = 1024, rising: bool = False):
        self.of, self.least, self.most, self.rising = of, least, most, rising

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        count = f' of at least {self.least}' if self.least else ''
        return f'a list{count}{" in rising order" if self.rising else ""}, each {self.of.words(depth)}'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        items = _items(value, self.least, self.most, self.of, depth)
        if self.rising and any(a >= b for a, b in zip(items, items[1:])):
            raise Unfit
        return items


class OneOrMore(Listed):
    """A single value, or a list or tuple of values; code gets the value, or a tuple."""

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f'{self.of.words(depth)}, or a list of these'

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        return super().take(value, depth) if isinstance(value, (list, tuple)) else self.of.take(value, depth)


SHARE = Number(least=0, below=1, noun='a share')
PROBABILITY = Number(least=0, below=1, noun='a probability')
COSINE = Number(least=-1, most=1, noun='a cosine similarity')
SEED = Whole(0, 2**31 - 1)


def _items(value, least, most, of, depth=None):
    if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
        raise Unfit
    return tuple(of.take(item, depth) for item in value)
