"""Lengths that are a multiple, against a search of all that a method could leave."""

import itertools

import pytest

from mmtr import UserError
from mmtr.models.backbones import MixVisionTransformer, SwinTransformer
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.multiples import shortened_grid

from .test_contract import images, vit
from .test_contract_stages import host_of


def schedule(cfg, grid, prefix=1, **settings):
    return build_token_reducer(dict(cfg, **settings), BackboneInfo(4, 16, prefix)).token_schedule(grid, 4)


@pytest.mark.parametrize(
    'cfg, least',
    [
        # What each could leave of n tokens.
        (dict(type='EViT', keep_rate=0.45, layers=(1,)), lambda n: 2),
        (dict(type='EViT', keep_rate=0.5, layers=(1,), fuse=False), lambda n: 1),
        (dict(type='ToMe', r=0.3, layers=(1, 3)), lambda n: n - n // 2),
        (dict(type='ToMe', mode='progressive', r=9, layers=(1, 2)), lambda n: n - n // 2),
    ],
    ids=lambda value: 'least' if callable(value) else str(value),  # the address of a function differs between workers
)
@pytest.mark.parametrize('grid, prefix', [((10, 14), 1), ((9, 7), 4)])
def test_the_largest_multiple_that_is_not_longer(cfg, least, grid, prefix):
    own, found, n = schedule(cfg, grid, prefix), schedule(cfg, grid, prefix, multiple_of=8), grid[0] * grid[1]
    for before, after in zip(own, found):
        fitting = [m for m in range(least(n), before + 1) if (m + prefix) % 8 == 0]
        assert after == (n if before == n else max(fitting))
    assert own != found and min(own) < n


def test_a_progressive_merge_stays_at_multiples_to_its_end():
    lengths = [
        n + 1
        for n in build_token_reducer(
            dict(type='ToMe', mode='progressive', r=8, multiple_of=8), BackboneInfo(25, 16, 1, (14, 14))
        ).token_schedule((14, 14), 25)
    ]
    # 197, and 8 fewer with every layer; of 15 patches 7 could merge, which is no multiple.
    assert lengths == [197, *(184 - 8 * k for k in range(22)), 16, 16]


@pytest.mark.parametrize('left, now', [((7, 10), (10, 14)), ((3, 5), (5, 7)), ((6, 4), (6, 9)), ((5, 5), (9, 9))])
@pytest.mark.parametrize('prefix, multiple', [(0, 4), (1, 3), (5, 2)])
def test_the_grid_with_most_tokens(left, now, prefix, multiple):
    rows, columns = shortened_grid(left, now, now, prefix, multiple)
    halves = (range(-(-n // 2), n + 1) for n in left)
    fitting = [grid for grid in itertools.product(*halves) if (grid[0] * grid[1] + prefix) % multiple == 0]
    most = [grid for grid in fitting if grid[0] * grid[1] == max(a * b for a, b in fitting)]
    assert (rows, columns) in most
    away = {grid: abs(grid[0] * left[1] - grid[1] * left[0]) for grid in most}
    assert away[rows, columns] == min(away.values())


def test_a_grid_that_is_not_reduced_stays():
    assert shortened_grid((5, 7), (5, 7), (5, 7), 0, 8) == (5, 7)
    # Reduced before, and no pair fits now: as in the layer before.
    assert shortened_grid((3, 3), (4, 4), (5, 7), 0, 16) == (4, 4)


@pytest.mark.parametrize(
    'cfg',
    [
        dict(type='TokenAdapter', ratio=0.3),
        dict(type='TokenAdapter', per_layer=1, layers=(0, 4)),
        dict(type='GridPool', ratio=0.3),
        dict(type='CubistMerge', ratio=0.3),
        dict(type='Expediting', grid=(8, 0.8)),
    ],
    ids=str,
)
def test_methods_that_leave_a_grid(cfg):
    own, found = schedule(cfg, (10, 14)), schedule(cfg, (10, 14), multiple_of=8)
    assert all((n + 1) % 8 == 0 if n < 140 else m == 140 for m, n in zip(own, found)) and min(found) < 140
    # Step by step, less is left with each step that is rounded.
    lowest = 1 if 'per_layer' in cfg else min(own) / 4
    assert all(n == m if m == 140 else lowest <= n <= m for m, n in zip(own, found))
    assert schedule(dict(cfg, multiple_of=1), (10, 14)) == own


@pytest.mark.parametrize(
    'cfg, words',
    [
        (
            dict(type='GridPool', multiple_of=64),
            'a grid of 2x3 tokens, and none from 1x2 to that, with 1 prefix tokens',
        ),
        (dict(type='CubistMerge', ratio=0.5, multiple_of=2), 'a grid of 2x3 tokens, and none from 2x3'),
        (dict(type='ToMe', r=0.3, multiple_of=64), 'leave 18 of 25 tokens, prefix tokens included, and no multiple'),
        (dict(type='EViT', keep_rate=0.5, multiple_of=64), 'leave 14 of 25 tokens'),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_when_the_model_is_built(cfg, words):
    with pytest.raises(UserError, match=f'multiple_of={cfg["multiple_of"]} .*{words}'):
        vit(cfg)


def test_another_image_that_does_not_fit_is_refused_at_its_forward():
    model = vit(dict(type='CubistMerge', ratio=0.3, multiple_of=2))
    model(images(1, 64, 96))
    with pytest.raises(UserError, match='multiple_of=2 does not fit: the settings leave a grid of 2x2 tokens'):
        model(images(1, 48, 48))


@pytest.mark.parametrize('kind', [SwinTransformer, MixVisionTransformer])
def test_stages_refuse_it(kind):
    with pytest.raises(UserError, match='multiple_of=8 is for a plain ViT, .* leave it out in a backbone of stages'):
        host_of(kind)(dict(type='GridPool', multiple_of=8))
