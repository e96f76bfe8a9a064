"""Declarations of configs that a registry builds, and of instances."""

from typing import Any, Callable, Optional

from mmengine.registry import Registry

from .base import Setting, Unfit


class Config(Setting):
    """A config, ``dict(type=..., ...)``, of a class in a registry.

    Args:
        registry: Registry that holds the class.
        fits: Says whether a class is allowed.
        noun: What the class is, for error messages and tables.
    """

    def __init__(self, registry: Registry, fits: Callable[[type], bool], noun: str):
        self.registry, self.fits, self.noun = registry, fits, noun

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return f"dict(type='...', ...) of {self.noun}"

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        kind = value.get('type') if isinstance(value, dict) else None
        kind = self.registry.get(kind) if isinstance(kind, str) and kind else kind
        if not isinstance(kind, type) or not self.fits(kind):
            raise Unfit
        return value


class Kind(Setting):
    """An instance of any of several Python types; what it holds is checked elsewhere.

    Args:
        types: Allowed types.
        noun: What the instance is, for error messages and tables.
    """

    def __init__(self, *types, noun: str):
        self.types, self.noun = types, noun

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        return self.noun

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        if not isinstance(value, self.types):
            raise Unfit
        return value
