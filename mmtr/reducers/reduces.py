"""Whether a part of a model reduces tokens."""

from typing import Any

from .base import TokenReducer


def reduces(part: Any) -> bool:
    """Whether ``part`` is a token reducer other than the base class, which a model without a reduction has."""
    return isinstance(part, TokenReducer) and type(part) is not TokenReducer
