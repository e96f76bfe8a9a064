"""Declarations of settings: each one is the annotation of an argument, and says which values are allowed.

``def __init__(self, backbone, n_iters: Whole(1, 100) = 5, layers: Maybe(Span()) = None)`` in a ``Declared`` class (see
``mmtr/declared.py``) declares two settings. The class checks them when it is built, ``docs/options.py`` writes the
option tables from them, and tests draw random values from them.
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
