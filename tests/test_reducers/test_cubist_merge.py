"""CubistMerge written out line by line and token by token, for one image."""

import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.ops.neighbours import match_neighbours, merge_largest
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .references import likeness
from .test_contract import images
from .test_contract import vit as backbone

CHANNELS, PREFIX = 8, 2


def cubist(depth=6, info=None, **settings):
    info = info or BackboneInfo(depth, CHANNELS, PREFIX)
    return build_token_reducer(dict(type='CubistMerge', **settings), info)


def image_tokens(grid, batch=2):
    x = torch.randn(batch, PREFIX + grid[0] * grid[1], CHANNELS, generator=torch.Generator().manual_seed(0))
    return Tokens(x, grid, PREFIX)


def value_of(patches, members, merge):
    """The token of a group of patches, channel by channel."""
    channels = zip(*(patches[p].tolist() for p in members))
    if merge == 'average':
        return torch.tensor([sum(values) / len(values) for values in channels])
    return torch.tensor([max(values, key=lambda v: (abs(v), v)) for values in channels])


def shorter(line, x, r, metric, merge):
    """A line of groups of patches, the first of each its place, after r of the odd ones joined a neighbour."""
    tokens = [value_of(x, members, merge) for members in line]
    wishes = []
    for j in range(1, len(line), 2):
        neighbours = [k for k in (j - 1, j + 1) if k < len(line)]
        best = max(neighbours, key=lambda k: (likeness(tokens[j], tokens[k], metric), -k))
        wishes.append((-likeness(tokens[j], tokens[best], metric), j, best))
    joined = {j: list(members) for j, members in enumerate(line)}
    for _, j, best in sorted(wishes)[:r]:
        joined[best] += joined.pop(j)
    return [joined[j] for j in sorted(joined)]


def groups_of(x, grid, r, metric, merge):
    """Patches of each token that is left, row by row of the smaller grid."""
    rows = [shorter([[h * grid[1] + w] for w in range(grid[1])], x, r[1], metric, merge) for h in range(grid[0])]
    columns = [shorter(list(column), x, r[0], metric, merge) for column in zip(*rows)]
    return [members for row in zip(*columns) for members in row]


@pytest.mark.parametrize('merge', ['max', 'average'])
@pytest.mark.parametrize('metric', ['cosine', 'euclidean'])
@pytest.mark.parametrize(
    'grid, ratio, r',
    [
        ((5, 8), 0.3, (2, 2)),
        ((6, 7), 0.5, (3, 3)),
        ((7, 6), (0.5, 0.2), (3, 1)),
        ((5, 9), (0, 0.4), (0, 4)),
        ((9, 1), 0.5, (4, 0)),
    ],
)
def test_merges_and_restores_token_by_token(grid, ratio, r, metric, merge):
    tokens = image_tokens(grid)
    for restore in ('copy', 'residual'):
        reducer = cubist(ratio=ratio, layers=(1, 3), metric=metric, merge=merge, restore=restore)
        assert reducer.before_layer(0, tokens) is tokens
        inside = reducer.before_layer(1, tokens)
        assert torch.equal(inside.prefix, tokens.prefix) and reducer.before_layer(2, inside) is inside
        refined = inside.replace(x=inside.x.square() + 1)
        assert reducer.after_layer(1, refined) is refined
        out = reducer.after_layer(2, refined)
        assert out.index is None and out.size is None and out.undo is None
        group, stands_for = reducer.token_map(inside)
        for image, x in enumerate(tokens.patches):
            groups = groups_of(x, grid, r, metric, merge)
            assert len(groups) == (grid[0] - r[0]) * (grid[1] - r[1])
            merged = torch.stack([value_of(x, members, merge) for members in groups])
            torch.testing.assert_close(inside.patches[image], merged)
            assert inside.size[image].tolist() == [len(members) for members in groups]
            assert inside.index[image].tolist() == [members[0] for members in groups]
            slot = {p: k for k, members in enumerate(groups) for p in members}
            slots = [slot[p] for p in range(len(x))]
            expected = (merged.square() + 1)[slots]
            if restore == 'residual':
                expected = x + expected - merged[slots]
            torch.testing.assert_close(out.patches[image], expected, atol=1e-5, rtol=1e-5)
            assert stands_for[image].tolist() == [groups[k][0] for k in slots]
            assert group[image].nonzero().flatten().tolist() == sorted(members[0] for members in groups)


def test_a_token_between_two_that_join_it_loses_neither():
    # Angles of five tokens: the second and the fourth are nearest to the third.
    angles = torch.tensor([0.0, 1.4, 1.5, 1.6, 3.0])
    x = torch.stack([angles.cos(), angles.sin()], 1)[None]
    matching = match_neighbours(x, 2, 'cosine')
    assert matching.kept.tolist() == [[0, 2, 4]] and matching.slots().tolist() == [[0, 1, 1, 1, 2]]
    values = torch.tensor([[9.0, 9], [-2, 1], [2, -3], [1, 3], [8, 8]])[None]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0]):
        merged = merge_largest(values[:, order], match_neighbours(x[:, order], 2, 'cosine'))
        # Of 2 and -2 the positive one, wherever it is.
        assert merged[0, 1].tolist() == [2, 3]


def test_of_equal_tokens_the_first_merge_to_the_left():
    matching = match_neighbours(torch.ones(1, 7, 3), 2, 'euclidean')
    assert matching.source.tolist() == [[1, 3]] and matching.slots().tolist() == [[0, 0, 1, 1, 2, 3, 4]]


def test_counts():
    assert cubist(24).grid_schedule((40, 40), 24) == [(40, 40)] * 10 + [(28, 28)] * 14
    # The released example for DeiT-B: one of 14 rows and columns, before layer 1.
    assert cubist(12, ratio=1 / 14, layers=(1, 12)).token_schedule((14, 14), 12) == [196] + [169] * 11
    assert cubist(ratio=0.5, layers=(0, 6)).grid_schedule((7, 1), 1) == [(4, 1)]
    assert cubist(layers=(3, 3)).token_schedule((5, 8), 6) == [40] * 6


@pytest.mark.parametrize('multiple', [1, 2, 4, 8])
def test_where_kernels_need_whole_multiples_no_more_than_half_go(multiple):
    reducer = cubist(info=BackboneInfo(1, CHANNELS, 0, stage=1, multiple=multiple), ratio=0.5, layers=(0, 1))
    for n in range(multiple, 40):
        ((left, same),) = reducer.grid_schedule((n, n), 1)
        assert left == same and n - left <= n // 2 and (left == n or left % multiple == 0)
        inside = reducer.before_layer(0, Tokens(torch.randn(1, n * n, CHANNELS), (n, n)))
        assert inside.patches.shape[1] == left * left


def test_matching_costs_next_to_nothing():
    plain, reduced = (count_flops(backbone(cfg), images(1)) for cfg in (None, dict(type='CubistMerge', layers=(0, 4))))
    assert reduced.unsupported == {}
    # 5x7 patches become 3x5, with a class token.
    saved = [4 * (12 * n * 32 * 32 + 2 * n * n * 32 + 10 * n * 32) for n in (36, 16)]
    assert 0 <= reduced.total - (plain.total - saved[0] + saved[1]) < 0.01 * plain.total


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(ratio=0.6), 'ratio=0.6 must be a share from 0 to 0.5, or two for'),
        (dict(ratio=(0.5, 1)), r'ratio=\(0.5, 1\) must be a share from 0 to 0.5'),
        (dict(metric='dot'), "metric='dot' must be one of cosine, euclidean"),
        (dict(merge='mean'), "merge='mean' must be one of max, average"),
        (dict(layers=(3, 7)), r'layers=\(3, 7\) must be a span of layers'),
        (dict(restore='none'), "restore='none' must be one of copy, residual"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        cubist(**settings)
