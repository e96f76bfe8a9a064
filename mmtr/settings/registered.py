"""Settings that are built by a registry."""

from typing import Any, Callable, Optional

from mmengine.registry import Registry

from .base import Setting, Unfit


class Config(Setting):
    """``dict(type=..., ...)`` of something that ``registry`` knows.

    Args:
        fits: Of the class that is named.
        noun: What it is, for words.
    """

    def __init__(self, registry: Registry, fits: Callable[[type], bool], noun: str):
        self.registry, self.fits, self.noun = registry, fits, noun

    def words(self, depth: Optional[int] = None) -> str:
        """See ``Setting``."""
        return f"dict(type='...', ...) of {self.noun}"

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """See ``Setting``."""
        kind = value.get('type') if isinstance(value, dict) else None
        kind = self.registry.get(kind) if isinstance(kind, str) and kind else kind
        if not isinstance(kind, type) or not self.fits(kind):
            raise Unfit
        return value


class Kind(Setting):
    """An instance of some Python types, which others look into.

    Args:
        types: Those.
        noun: What they are, for words.
    """

    def __init__(self, *types, noun: str):
        self.types, self.noun = types, noun

    def words(self, depth: Optional[int] = None) -> str:
        """See ``Setting``."""
        return self.noun

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """See ``Setting``."""
        if not isinstance(value, self.types):
            raise Unfit
        return value
