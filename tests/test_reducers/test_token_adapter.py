import pytest
import torch

from mmtr import UserError
from mmtr.ops.attention import attention_weights
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.base import attend
from mmtr.tokens import Tokens

from .references import eject_one, groups_of, inject_one, line_scores

GRID, CHANNELS, PREFIX = (6, 9), 16, 2
#: What the paper sets and the defaults do not.
PAPER = dict(score='max', restore='copy')


def adapter(depth=6, **settings):
    settings = {**PAPER, **settings}
    return build_token_reducer(dict(type='TokenAdapter', **settings), BackboneInfo(depth, CHANNELS, PREFIX))


def some_tokens(batch=2, grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, PREFIX + grid[0] * grid[1], CHANNELS, generator=generator)
    return Tokens(x, grid, PREFIX)


def refine(tokens):
    """Stands for the layers of the span: something that is not the identity."""
    return tokens.replace(x=tokens.x * 2 + 1)


SETTINGS = [
    dict(),
    dict(mode='threshold', tau=0.5),
    dict(ratio=(0.3, 0.6), unique=(0.2, 0.1)),
    dict(ratio=(0.0, 0.4), unique=0.3),
    *[dict(score=s) for s in ('sum', 'range')],
    *[dict(metric=m, mode='threshold', tau=t) for m, t in (('dot', 3.0), ('euclidean', -4.0), ('manhattan', -14.0))],
    *[dict(merge=m) for m in ('keep', 'max_pool', 'avg_pool', 'bilinear')],
    *[dict(reference=r, unique=0.2) for r in ('reduced', 'representative_merged', 'representative')],
    *[dict(reference=r, unique=0.2, mode='threshold', tau=0.4) for r in ('reduced', 'representative')],
    dict(mode='threshold', tau=0.2),
]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_span_matches_the_paper_token_by_token(settings):
    reducer = adapter(layers=(1, 3), **settings)
    tokens = some_tokens()
    ratio, unique = (settings.get(k, v) for k, v in (('ratio', 0.3), ('unique', 0.0)))
    ratio, unique = (v if isinstance(v, tuple) else (v, v) for v in (ratio, unique))
    normal = tuple(round(r * n) for r, n in zip(ratio, GRID))
    uniques = tuple(round(u * n) for u, n in zip(unique, GRID))
    reduced = (GRID[0] - normal[0], GRID[1] - normal[1])
    metric, reference = settings.get('metric', 'cosine'), settings.get('reference', 'reduced_merged')
    tau = settings['tau'] if settings.get('mode') == 'threshold' else None

    inside = reducer.before_layer(1, tokens)
    outside = reducer.after_layer(2, refine(inside))

    for image in range(2):
        x = tokens.patches[image]
        rows, columns = line_scores(x.reshape(*GRID, -1), settings.get('score', 'max'))
        groups = groups_of(rows, columns, normal, uniques)
        merged = inject_one(x, groups, metric, settings.get('merge', 'average'), GRID, reduced)
        restored = eject_one(x, merged, merged * 2 + 1, groups, metric, reference, tau)
        assert inside.index[image].tolist() == groups['kept']
        torch.testing.assert_close(inside.patches[image], merged, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outside.patches[image], restored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outside.prefix, tokens.prefix * 2 + 1)


def test_reduces_by_rows_and_columns_as_counted():
    # Sec. 3.1: n_r = H W (r_h + r_w - r_h r_w)
    tokens = some_tokens(grid=(10, 20))
    inside = adapter(layers=(0, 6), ratio=(0.3, 0.2)).before_layer(0, tokens)
    assert inside.patches.shape[1] == 200 - round(200 * (0.3 + 0.2 - 0.06))
    assert inside.size.sum(1).tolist() == [200, 200]


def test_group_of_lowest_attention_is_merged():
    reducer = adapter(layers=(2, 6), score='attn', ratio=0.34)
    tokens = some_tokens(batch=1)
    heads, length = 4, tokens.x.shape[1]
    q, k, v = torch.randn(3, 1, heads, length, 8)

    class Attention:
        def qkv(self, x):
            return q, k, v

        def positioned(self, *qk):
            return qk

        def attend(self, *qkv):
            return v.transpose(1, 2).flatten(2)

    _, tokens = attend(reducer, 1, Attention(), tokens.x, tokens)
    received = attention_weights(q, k).mean((1, 2))[0, PREFIX:].reshape(GRID)
    kept_rows = sorted(received.amax(1).argsort()[2:].tolist())
    kept_columns = sorted(received.amax(0).argsort()[3:].tolist())
    assert reducer.before_layer(2, tokens).index[0].tolist() == [h * 9 + w for h in kept_rows for w in kept_columns]


def test_alternating_rows_are_evenly_spaced():
    inside = adapter(layers=(0, 6), score='alternating', ratio=(0.5, 1 / 3)).before_layer(0, some_tokens(1))
    rows = sorted({p // 9 for p in inside.index[0].tolist()})
    columns = sorted({p % 9 for p in inside.index[0].tolist()})
    assert {b - a for a, b in zip(rows, rows[1:])} == {2}
    assert {b - a for a, b in zip(columns, columns[1:])} == {1, 2} and len(columns) == 6


def test_random_rows_depend_on_the_seed_alone():
    def kept(seed, data):
        return adapter(layers=(0, 6), score='random', seed=seed).before_layer(0, some_tokens(3, seed=data)).index

    assert torch.equal(kept(0, data=1), kept(0, data=2))
    assert torch.equal(kept(0, 1)[0], kept(0, 1)[2])
    assert len({tuple(kept(seed, 1)[0].tolist()) for seed in range(8)}) > 4


def test_equal_tokens_are_grouped_and_matched_in_order():
    tokens = Tokens(torch.ones(1, 24, CHANNELS), (4, 6), 0)
    inside = adapter(layers=(0, 6), ratio=0.5).before_layer(0, tokens)
    assert inside.index[0].tolist() == [15, 16, 17, 21, 22, 23]
    assert inside.size[0].tolist() == [19, 1, 1, 1, 1, 1]


def test_one_row_is_merged_in_every_layer():
    # Tab. 3, dagger: 32 of 32x32 tokens a layer. The published GFLOPs follow from these counts.
    rows = [n // 32 for n in adapter(24, per_layer=(1, 0), layers=(0, 24)).token_schedule((32, 32), 24)]
    assert rows == list(range(32, 8, -1))
    rows = [n // 32 for n in adapter(24, per_layer=(2, 0), layers=(0, 24)).token_schedule((32, 32), 24)]
    assert rows == [*range(32, 0, -2), *[2] * 8]


@pytest.mark.parametrize('tau', [None, 0.5])
def test_per_layer_restores_level_by_level(tau):
    matching = dict(mode='max') if tau is None else dict(mode='threshold', tau=tau)
    reducer = adapter(3, per_layer=(1, 1), layers=(0, 3), **matching)
    tokens = some_tokens(1)
    flow, expected, undo = tokens, tokens.patches[0], []
    grid = GRID
    for layer in range(3):
        flow = reducer.before_layer(layer, flow)
        if layer > 0:
            groups = groups_of(*line_scores(expected.reshape(*grid, -1), 'max'), (1, 1), (0, 0))
            reduced = (grid[0] - 1, grid[1] - 1)
            merged = inject_one(expected, groups, 'cosine', 'average', grid, reduced)
            undo.append((expected, merged, groups))
            expected, grid = merged, reduced
        flow, expected = refine(flow), expected * 2 + 1
        flow = reducer.after_layer(layer, flow)
    for x, merged, groups in reversed(undo):
        expected = eject_one(x, merged, expected, groups, 'cosine', 'reduced_merged', tau)
    torch.testing.assert_close(flow.patches[0], expected, atol=1e-5, rtol=1e-5)


def test_without_restoration_the_reduced_grid_is_handed_on():
    reducer = adapter(layers=(2, 4), ratio=(0.5, 1 / 3), restore='none')
    inside = reducer.before_layer(2, some_tokens())
    out = reducer.restore(reducer.after_layer(3, inside))
    assert out.grid == (3, 6) and torch.equal(out.x, inside.x)
    assert reducer.token_schedule(GRID, 6) == [54, 54, 18, 18, 18, 18]


def test_default_span_is_the_same_share_of_any_depth():
    assert adapter(24).layers == (10, 24)
    assert adapter(12).layers == (5, 12)


def test_token_map_follows_every_merge():
    reducer = adapter(3, per_layer=(1, 1), layers=(0, 3), unique=0.2)
    flow = some_tokens(1)
    for layer in range(3):
        flow = refine(reducer.before_layer(layer, flow))
    group, stands_for = reducer.token_map(flow)
    kept = set(flow.index[0].tolist())
    assert set(stands_for[0].tolist()) <= kept
    for position in range(54):
        assert (group[0, position] > 0) == (position in kept)
        if position in kept:
            assert stands_for[0, position] == position
    assert {0, 1, 2} == set(group[0].tolist())


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(ratio=1.0), r'ratio=1.0 must be a share of at least 0, below 1'),
        (dict(ratio=-0.1), r'ratio=-0.1'),
        (dict(ratio=0.6, unique=0.5), r'ratio=0.6 and unique=0.5'),
        (dict(ratio='much'), r"ratio='much' must be a share .*, or two"),
        (dict(layers=(3, 7)), r'layers=\(3, 7\) .* 0 <= a <= b <= 6'),
        (dict(layers=(4, 2)), r'layers=\(4, 2\)'),
        (dict(layers=3), r'layers=3 must be a span'),
        (dict(score='mean'), r"score='mean' must be one of max, sum"),
        (dict(score='attn', layers=(0, 6)), r"score='attn'.*start at layer 1"),
        (dict(metric='l3'), r"metric='l3'"),
        (dict(tau=1.5), r'tau=1.5 must be a cosine'),
        (dict(per_layer=(1, 0), ratio=0.3), r'exclude each other'),
        (dict(per_layer=0.5), r'per_layer=0.5 must be a whole number'),
        (dict(ration=0.3), r"no setting 'ration', the nearest is 'ratio': it has ratio"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        adapter(**settings)


def test_unknown_reducer_lists_those_that_exist():
    with pytest.raises(UserError, match="'TokenAdaptor' is unknown, the nearest is 'TokenAdapter': choose one of .*To"):
        build_token_reducer(dict(type='TokenAdaptor'), BackboneInfo(6, 16, 1))


def test_ratio_that_empties_a_small_grid_names_the_largest_that_fits():
    reducer = adapter(layers=(0, 6), ratio=0.9)
    with pytest.raises(UserError, match=r'ratio=0.9 takes 4 of 4 rows of the 4x30 .* that fits is 0.75'):
        reducer.before_layer(0, some_tokens(grid=(4, 30)))
    with pytest.raises(UserError, match='that fits is 0.75'):
        reducer.token_schedule((4, 30), 6)
