"""ToMe written out token by token, from the paper's Sec. 3 and the released code's order, for one image."""

from fractions import Fraction
from itertools import product
from math import floor

import pytest
import torch

from mmtr import UserError
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.ops.attention import attention
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.base import attend
from mmtr.tokens import Tokens

from .references import bipartite_slowly

GRID, CHANNELS, HEADS = (3, 5), 16, 2
#: None, a class token, with a second one (the release's distilled models), with three registers.
prefixes = pytest.mark.parametrize('prefix', [0, 1, 2, 4])


def tome(depth=4, prefix=1, **settings):
    return build_token_reducer(dict(type='ToMe', **settings), BackboneInfo(depth, CHANNELS, prefix))


def some_tokens(batch=2, grid=GRID, prefix=1):
    generator = torch.Generator().manual_seed(0)
    return Tokens(torch.randn(batch, prefix + grid[0] * grid[1], CHANNELS, generator=generator), grid, prefix)


class Attention(TokenAttention):
    """Attention without weights."""

    def qkv(self, x, kept=None):
        heads = x.unflatten(2, (HEADS, -1)).transpose(1, 2)
        return heads, heads.sin(), heads.cos()

    def attend(self, q, k, v, bias=None, kept=None):
        return attention(q, k, v, 'math', bias=bias).transpose(1, 2).flatten(2)

    def branch(self, x):
        return self.attend(*self.qkv(x))


def attend_slowly(x, sizes):
    """``Attention`` of tokens (N, C), each key as if it were there ``size`` times: (N, C)."""
    out = torch.empty_like(x)
    for head in range(HEADS):
        part = slice(head * CHANNELS // HEADS, (head + 1) * CHANNELS // HEADS)
        for n in range(len(x)):
            share = torch.stack(
                [
                    size * (x[n, part] @ key.sin() / (CHANNELS / HEADS) ** 0.5).exp()
                    for size, key in zip(sizes, x[:, part])
                ]
            )
            out[n, part] = sum(s / share.sum() * key.cos() for s, key in zip(share, x[:, part]))
    return out


def merge_slowly(metric, r, prefix):
    """``bipartite_slowly`` for r tokens, at most half of the patches."""
    return bipartite_slowly(metric, prefix, lambda alike: min(r, (len(metric) - prefix) // 2))


def weighted_mean(x, joined, sizes):
    """What the tokens (N, C) of each list of ``joined`` merge into."""
    return torch.stack([sum(sizes[n] * x[n] for n in members) / sum(sizes[n] for n in members) for members in joined])


def ffn(x):
    return x.sin() + x.mean(-1, keepdim=True)


@prefixes
@pytest.mark.parametrize('grid', [(3, 5), (3, 4), (1, 2)])
@pytest.mark.parametrize('r, proportional', [(4, False), (0.3, True), (0.5, False), (100, True)])
def test_sublayers_run_on_merged_tokens(r, proportional, grid, prefix):
    reducer = tome(r=r, proportional_attention=proportional, prefix=prefix)
    tokens = some_tokens(grid=grid, prefix=prefix)
    count = int(r * grid[0] * grid[1]) if r < 1 else r
    attended, _ = attend(reducer, 1, Attention(), tokens.x, tokens)
    fed = reducer.ffn(1, ffn, tokens.x, tokens)
    for image, x in enumerate(tokens.x):
        joined = merge_slowly(x, count, prefix)
        merged = weighted_mean(x, joined, [1] * len(x))
        slot = {n: j for j, members in enumerate(joined) for n in members}
        rows = [slot[n] for n in range(len(x))]
        sizes = [len(members) if proportional else 1 for members in joined]
        torch.testing.assert_close(attended[image], attend_slowly(merged, sizes)[rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fed[image], ffn(merged)[rows], atol=1e-5, rtol=1e-5)


def test_with_a_class_token_odd_patches_join_even_ones():
    # Patches 1 and 3 are nearest to 0; 0 and 2 to 1.
    angle = torch.tensor([0.0, 10.0, 40.0, -15.0]).deg2rad()
    patches = torch.stack([angle.cos(), angle.sin()], 1)
    for prefix, groups in ((0, [[0, 1, 2], [3]]), (1, [[0, 1, 3], [2]]), (2, [[0, 1, 2], [3]])):
        tokens = Tokens(torch.cat([torch.ones(prefix, 2), patches])[None], (2, 2), prefix)
        reducer = build_token_reducer(dict(type='ToMe', r=2), BackboneInfo(1, 2, prefix))
        fed = reducer.ffn(0, lambda merged: merged, tokens.x, tokens)[0]
        assert torch.equal(fed[:prefix], tokens.x[0, :prefix])
        for members in groups:
            torch.testing.assert_close(fed[prefix:][members], patches[members].mean(0).expand(len(members), 2))


def run_progressive(reducer, tokens, depth):
    for i in range(depth):
        tokens = reducer.before_layer(i, tokens)
        branch, tokens = attend(reducer, i, Attention(), tokens.x * 2, tokens)
        tokens = reducer.between(i, tokens.replace(x=tokens.x + branch))
        tokens = reducer.after_layer(i, tokens.replace(x=tokens.x + reducer.ffn(i, ffn, tokens.x, tokens)))
    return tokens


@prefixes
@pytest.mark.parametrize(
    'settings, counts, proportional',
    [
        (dict(r=3), (3, 3, 3), True),
        (dict(r=[2, 0, 5]), (2, 0, 5), False),
        (dict(r=4, layers=(1, 3)), (0, 4, 4), True),
        (dict(r=0.5), (7, 4, 2), False),
        (dict(r=(2, -1)), (4, 2, 0), True),
    ],
)
def test_progressive_merging_matches_the_release_token_by_token(settings, counts, proportional, prefix):
    reducer = tome(3, prefix, mode='progressive', restore='copy', proportional_attention=proportional, **settings)
    tokens = some_tokens(prefix=prefix)
    flow = run_progressive(reducer, tokens, 3)
    restored = reducer.restore(flow)
    for image, x in enumerate(tokens.x):
        groups = [[n] for n in range(len(x))]
        for r in counts:
            sizes = [len(members) for members in groups]
            keys = (2 * x).sin().reshape(len(x), HEADS, -1).mean(1)
            x = x + attend_slowly(2 * x, sizes if proportional else [1] * len(x))
            joined = merge_slowly(keys, r, prefix) if r else [[n] for n in range(len(x))]
            x = weighted_mean(x, joined, sizes)
            groups = [[n for j in members for n in groups[j]] for members in joined]
            x = x + ffn(x)
        # In the release's order: what stays, then what others joined.
        assert flow.size[image].tolist() == [len(members) for members in groups[prefix:]]
        torch.testing.assert_close(flow.x[image], x, atol=1e-4, rtol=1e-4)
        slot = {n: j for j, members in enumerate(groups) for n in members}
        expected = x[[slot[n] for n in range(15 + prefix)]]
        torch.testing.assert_close(restored.x[image], expected, atol=1e-4, rtol=1e-4)
        # Pictures say the same.
        group, stands_for = (t[image].tolist() for t in reducer.token_map(flow))
        assert [n for n in range(15) if group[n] == 1] == sorted(flow.index[image].tolist())
        assert all(len({stands_for[n - prefix] for n in members}) == 1 for members in groups[prefix:])
        assert len(set(stands_for)) == len(groups) - prefix


def test_pictures_of_sublayers_show_what_merged_for_attention():
    reducer, tokens = tome(r=5), some_tokens(1)
    assert reducer.token_map(tokens) is None
    _, tokens = attend(reducer, 0, Attention(), tokens.x, tokens)
    group, stands_for = reducer.token_map(tokens)
    for members in merge_slowly(tokens.x[0], 5, 1)[1:]:
        assert {stands_for[0, n - 1].item() for n in members} == {members[0] - 1}
        assert [group[0, n - 1].item() for n in members] == [1] + [0] * (len(members) - 1)
    assert reducer.token_map(reducer.after_layer(0, tokens)) is None


def test_weights_of_merged_tokens_are_summed_in_float32():
    # In bfloat16, 256 + 1 is 256.
    reducer = tome(mode='progressive', r=1)
    tokens = some_tokens(1, (1, 2))
    tokens = tokens.replace(x=tokens.x.bfloat16(), size=torch.tensor([[1.0, 256.0]]))
    _, tokens = attend(reducer, 0, Attention(), tokens.x, tokens)
    merged = reducer.between(0, tokens)
    assert merged.size.tolist() == [[257.0]] and merged.x.dtype == torch.bfloat16


@pytest.mark.parametrize('r, published', [(0.2, 516.23), (0.3, 448.70), (0.5, 321.29)])
def test_published_gflops_follow_from_the_schedule(r, published):
    # Segmenter ViT-L/16 on ADE20K, 658.98 G plain (Token Adapter, Tab. 1).
    def layers(schedule):
        return sum(12 * n * 1024**2 + 2 * n**2 * 1024 for n in schedule) / 1e9

    schedule = tome(24, r=r).token_schedule((40, 40), 24)
    assert abs(658.98 - layers([1600] * 24) + layers(schedule) - published) < 2


def test_schedules_of_the_paper():
    # ViT-L, r = 8 in each layer; a falling schedule merges 2 r in the first layer and none in the last.
    assert tome(24, mode='progressive').token_schedule((14, 14), 24) == list(range(196, 4, -8))
    falling = tome(5, mode='progressive', r=(8, -1)).token_schedule((14, 14), 5)
    assert falling == [196, 180, 168, 160, 156]
    rising = tome(5, mode='progressive', r=(0.1, 1)).token_schedule((10, 10), 5)
    assert rising == [100, 100, 95, 86, 74]  # 0, 5, 9.5 and 12.9 merge, rounded down


@pytest.mark.parametrize('depth', [1, 2, 5, 12, 24, 33])
def test_schedules_round_as_the_release(depth):
    # One end is rounded down, the other mirrors it at r; between them on a straight line, rounded down.
    for r, inflect in product((0, 1, 8, 13, 25), (-1, -0.7, -0.25, 0, 0.1, 0.5, 1)):
        low = floor(r * (1.0 - inflect))
        line = [low + Fraction(2 * (r - low) * k, max(depth - 1, 1)) for k in range(depth)]
        each = tome(depth, r=(r, inflect)).r
        assert len(each) == depth and each[0] == low
        # Where the line meets a whole number, a rounding error decides: see the next test.
        assert all(n == floor(exact) or n == exact - 1 for n, exact in zip(each, line))


@pytest.mark.parametrize(
    'depth, r, each',
    [
        # Printed by parse_r of facebookresearch/ToMe at af95e4b.
        (12, (13, 0.5), [6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 20]),
        (12, (13, -0.5), [19, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7]),
        (12, (8, 0.3), [5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 11]),
        (24, (13, 1), [*range(8), *range(9, 17), *range(18, 26)]),
    ],
    ids=str,
)
def test_schedules_that_the_release_prints(depth, r, each):
    assert tome(depth, r=r).r == each


@pytest.mark.parametrize('r', [8, 0.2, (8, -1), (0.2, 1), []])
def test_a_span_without_layers_merges_nothing(r):
    for mode in ('sublayer', 'progressive'):
        assert tome(4, mode=mode, r=r, layers=(3, 3)).token_schedule((3, 5), 4) == [15] * 4


@pytest.mark.parametrize('mode', ['sublayer', 'progressive'])
@pytest.mark.parametrize('grid', [(1, 1), (1, 2)])
def test_very_small_grids(mode, grid):
    tokens = run_progressive(tome(2, mode=mode), some_tokens(2, grid), 2)
    assert tokens.x.isfinite().all()
    assert tome(2, mode=mode).restore(tokens).patches.shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(mode='global'), r"mode='global' must be one of sublayer, progressive"),
        (dict(r=0.6), r'r=0.6 must be a share from 0 to 0.5'),
        (dict(r=-1), r'r=-1 must be'),
        (dict(r='much'), r"r='much' must be"),
        (dict(r=[1, 2]), r'r=\[1, 2\] has 2 values for 4 layers'),
        (dict(r=[1, 2, 3, 0.7]), r'r=\[1, 2, 3, 0.7\] must be'),
        (dict(r=(8, 2)), r'r=\(8, 2\) must be .* tuple \(r, inflect\) with an inflect from -1 to 1'),
        (dict(r=(0.4, 1)), r'r=\(0.4, 1\) cannot work'),
        (dict(layers=(0, 5)), r'layers=\(0, 5\)'),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        tome(**settings)
