"""Values that settings may be given: hostile ones, and ones drawn from what a declaration allows."""

from functools import singledispatch

import numpy as np
import torch

from mmtr import UserError
from mmtr import settings as declared
from mmtr.models.backbones.common.arguments import Initialisation
from mmtr.reducers.tome import Merging
from mmtr.settings import Listed, Maybe, Number, Pair, Whole

NAN, INF = float('nan'), float('inf')
HOSTILE = [
    'x',
    '',
    None,
    NAN,
    INF,
    -INF,
    -1,
    0,
    1,
    3,
    0.5,
    1.5,
    2.0,
    1e30,
    10**9,
    10**30,
    10**5000,
    [],
    (),
    {},
    dict(type='x'),
    dict(type=3),
    True,
    False,
    np.float64(NAN),
    np.float32(0.3),
    np.int64(1),
    np.array([1, 2]),
    torch.tensor(1.0),
    ((1, 2), (3,)),
    (0, INF),
    (NAN, 1),
    ('a',),
    [None],
    [1, 2],
    (0.5, -1),
    b'q',
    1j,
    int,
    dict(type='Pretrained'),
]


@singledispatch
def drawn(setting, rng, depth):
    """A value that ``setting`` allows, its bounds among them."""
    return rng.choice([value for value in HOSTILE if fits(setting, value, depth)])


@drawn.register
def _(setting: Whole, rng, depth):
    return rng.choice([setting.low, *range(setting.low, min(setting.high, setting.low + 9) + 1, 1 + setting.odd)])


@drawn.register
def _(setting: declared.Layer, rng, depth):
    return rng.randrange(max(depth - setting.spared, 1))


@drawn.register
def _(setting: Number, rng, depth):
    low = setting.above if setting.least is None else setting.least
    high = setting.below if setting.most is None else setting.most
    inside = [low + (high - low) * share for share in (1e-3, 0.3, 0.7, 0.999)]
    return rng.choice([n for n in (float(low), *inside, float(high)) if fits(setting, n, depth)])


@drawn.register
def _(setting: declared.Span, rng, depth):
    return tuple(sorted(rng.randint(0, depth) for _ in range(2)))


@drawn.register
def _(setting: declared.Choice, rng, depth):
    return rng.choice(setting.values)


@drawn.register
def _(setting: declared.Letters, rng, depth):
    return rng.choice(['', setting.letters, [*setting.letters[:2]]])


@drawn.register
def _(setting: Pair, rng, depth):
    return rng.choice([drawn(setting.of, rng, depth), [drawn(setting.of, rng, depth) for _ in range(2)]])


@drawn.register
def _(setting: Listed, rng, depth):
    values = [drawn(setting.of, rng, depth) for _ in range(rng.choice([setting.least, 2, 3]))]
    return sorted(set(values)) if setting.rising else values


@drawn.register
def _(setting: declared.OneOrMore, rng, depth):
    return drawn(setting.of, rng, depth) if rng.random() < 0.5 else drawn.dispatch(Listed)(setting, rng, depth)


@drawn.register
def _(setting: declared.Either, rng, depth):
    return drawn(rng.choice(setting.options), rng, depth)


@drawn.register
def _(setting: Maybe, rng, depth):
    return None if rng.random() < 0.2 else drawn.dispatch(declared.Either)(setting, rng, depth)


@drawn.register
def _(setting: declared.Text, rng, depth):
    return rng.choice(['qkv', 'fc.', 'all'])


@drawn.register
def _(setting: declared.Config, rng, depth):
    return dict(type=rng.choice([kind for kind in ('LN', 'GELU', 'ReLU') if fits(setting, dict(type=kind), depth)]))


@drawn.register
def _(setting: Initialisation, rng, depth):
    return dict(type='Pretrained', checkpoint='x.pth')


@drawn.register
def _(setting: Merging, rng, depth):
    each = setting._each
    return rng.choice(
        [
            drawn(each, rng, depth),
            (drawn(each, rng, depth), rng.choice([-1, 0, 0.5])),
            [drawn(each, rng, depth) for _ in range(depth)],
        ]
    )


def fits(setting, value, depth):
    try:
        setting.check('', value, depth)
    except UserError:
        return False
    return True
