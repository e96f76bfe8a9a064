"""What a setting may be: declared once, as the annotation of its argument.

``def __init__(self, backbone, n_iters: Whole(1, 100) = 5, layers: Maybe(Span()) = None)`` in a ``Declared`` class (see
``mmtr/declared.py``) is all: values are checked when a thing is built, the tables of the docs are written from it, and
tests draw from it.
"""

from .base import Setting, Unfit, closest, nearest, shown
from .kinds import (
    COSINE,
    PROBABILITY,
    SEED,
    SHARE,
    Choice,
    Either,
    Flag,
    Layer,
    Letters,
    Listed,
    Maybe,
    Number,
    OneOrMore,
    Pair,
    Span,
    Text,
    Whole,
)
from .registered import Config, Kind

__all__ = [
    'COSINE',
    'Choice',
    'Config',
    'Either',
    'Flag',
    'Kind',
    'Layer',
    'Letters',
    'Listed',
    'Maybe',
    'Number',
    'OneOrMore',
    'PROBABILITY',
    'Pair',
    'SEED',
    'SHARE',
    'Setting',
    'Span',
    'Text',
    'Unfit',
    'Whole',
    'closest',
    'nearest',
    'shown',
]
