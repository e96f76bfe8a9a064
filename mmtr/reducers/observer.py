"""Observing a reducer at work, for tools and pictures."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .base import TokenReducer


class Observer(TokenReducer):
    """A reducer that passes every call on to another one.

    A subclass overrides the methods that it observes, and calls those of ``inner`` there.

    Args:
        inner: Reducer that is observed.
    """

    def __init__(self, inner: TokenReducer):
        super().__init__(inner.backbone)
        self.inner, self.fixed_count, self.restore_at = inner, inner.fixed_count, inner.restore_at
        for name in (
            'before_layer',
            'attention',
            'between',
            'ffn',
            'after_layer',
            'restore',
            'give_back',
            'losses',
            'token_schedule',
            'ffn_schedule',
            'grid_schedule',
            'token_map',
        ):
            if getattr(type(self), name) is getattr(TokenReducer, name):
                setattr(self, name, getattr(inner, name))


@contextmanager
def reducer_of(backbone: nn.Module, reducer: TokenReducer) -> Iterator[TokenReducer]:
    """Run ``backbone`` with ``reducer`` in place of its own, inside this context."""
    kept = backbone.token_reducer
    backbone.token_reducer = reducer
    try:
        yield reducer
    finally:
        backbone.token_reducer = kept
