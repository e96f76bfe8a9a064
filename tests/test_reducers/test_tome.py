"""ToMe written out token by token, from the paper's Sec. 3, for one image."""
import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.ops.attention import attention
from mmtr.reducers import BackboneShape, build_token_reducer
from mmtr.tokens import Tokens

GRID, CHANNELS, PREFIX, HEADS = (3, 5), 16, 2, 2


def tome(depth=4, **settings):
    return build_token_reducer(dict(type='ToMe', **settings), BackboneShape(depth, CHANNELS, PREFIX))


def some_tokens(batch=2, grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(batch, PREFIX + grid[0] * grid[1], CHANNELS, generator=generator), grid, PREFIX)


class Attention:
    """Attention without weights."""

    def qkv(self, x, kept=None):
        heads = x.unflatten(2, (HEADS, -1)).transpose(1, 2)
        return heads, heads.sin(), heads.cos()

    def attend(self, q, k, v, bias=None):
        return attention(q, k, v, 'math', bias=bias).transpose(1, 2).flatten(2)

    def branch(self, x):
        return self.attend(*self.qkv(x))


def attend_slowly(x, sizes):
    """``Attention`` of tokens (N, C), each key as if it were there ``size`` times: (N, C)."""
    out = torch.empty_like(x)
    for head in range(HEADS):
        part = slice(head * CHANNELS // HEADS, (head + 1) * CHANNELS // HEADS)
        for n in range(len(x)):
            share = torch.stack([size * (x[n, part] @ key.sin() / (CHANNELS / HEADS)**0.5).exp()
                                 for size, key in zip(sizes, x[:, part])])
            out[n, part] = sum(s / share.sum() * key.cos() for s, key in zip(share, x[:, part]))
    return out


def merge_slowly(groups, metric, r):
    """``groups`` (lists of members) after r of the even ones joined the odd ones, by ``metric`` (N, D)."""
    if r == 0:
        return groups
    even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
    alike = {a: {b: F.cosine_similarity(metric[a], metric[b], dim=0).item() for b in odd} for a in even}
    best = {a: max(odd, key=alike[a].get) for a in even}
    merging = sorted(even, key=lambda a: -alike[a][best[a]])[:r]
    joined = {b: list(groups[b]) for b in odd}
    for a in merging:
        joined[best[a]] += groups[a]
    return [groups[a] for a in even if a not in merging] + list(joined.values())


def ffn(x):
    return x.sin() + x.mean(-1, keepdim=True)


@pytest.mark.parametrize('proportional', [False, True])
@pytest.mark.parametrize('r, count', [(4, 4), (0.3, 4), (0.5, 7), (100, 7)])
def test_sublayers_run_on_merged_tokens(r, count, proportional):
    # 0.3 of 15 is 4.5; of 15 tokens at most 7 have a partner.
    reducer, tokens = tome(r=r, proportional_attention=proportional), some_tokens()
    attended = reducer.attention(1, Attention(), tokens.x, tokens)
    fed = reducer.ffn(1, ffn, tokens.x, tokens)
    for image in range(2):
        prefix, patches = tokens.prefix[image], tokens.patches[image]
        groups = merge_slowly([[n] for n in range(15)], patches, count)
        merged = torch.stack([torch.stack([patches[n] for n in members]).mean(0) for members in groups])
        x = torch.cat([prefix, merged])
        sizes = [1] * PREFIX + [len(members) if proportional else 1 for members in groups]
        slot = {n: PREFIX + j for j, members in enumerate(groups) for n in members}
        rows = [*range(PREFIX), *(slot[n] for n in range(15))]
        torch.testing.assert_close(attended[image], attend_slowly(x, sizes)[rows], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fed[image], ffn(x)[rows], atol=1e-5, rtol=1e-5)


def run_progressive(reducer, tokens, depth):
    for i in range(depth):
        tokens = reducer.before_layer(i, tokens)
        branch = reducer.attention(i, Attention(), tokens.x * 2, tokens)
        tokens = reducer.between(i, tokens.replace(x=tokens.x + branch))
        tokens = reducer.after_layer(i, tokens.replace(x=tokens.x + reducer.ffn(i, ffn, tokens.x, tokens)))
    return tokens


@pytest.mark.parametrize('proportional', [True, False])
@pytest.mark.parametrize('settings, counts', [
    (dict(r=3), (3, 3, 3)), (dict(r=[2, 0, 5]), (2, 0, 5)), (dict(r=4, layers=(1, 3)), (0, 4, 4)),
    (dict(r=0.5), (7, 4, 2)), (dict(r=(2, -1)), (4, 2, 0)), (dict(r=(2, 0.5)), (1, 2, 3)),
    (dict(), (7, 4, 2))])
def test_progressive_merging_matches_the_paper_token_by_token(settings, counts, proportional):
    reducer = tome(3, mode='progressive', restore='copy', proportional_attention=proportional, **settings)
    tokens = some_tokens()
    flow = run_progressive(reducer, tokens, 3)
    restored = reducer.restore(flow)
    for image in range(2):
        x, groups = tokens.x[image], [[n] for n in range(15)]
        for r in counts:
            sizes = [1] * PREFIX + [len(members) if proportional else 1 for members in groups]
            keys = (2 * x).sin().reshape(len(x), HEADS, -1).mean(1)
            x = x + attend_slowly(2 * x, sizes)
            after = merge_slowly([[j] for j in range(len(groups))], keys[PREFIX:], r)
            weights = [[len(groups[j]) for j in joined] for joined in after]
            merged = [sum(w * x[PREFIX + j] for w, j in zip(weight, joined)) / sum(weight)
                      for weight, joined in zip(weights, after)]
            groups = [[n for j in joined for n in groups[j]] for joined in after]
            x = torch.cat([x[:PREFIX], torch.stack(merged)])
            x = x + ffn(x)
        assert flow.size[image].tolist() == [len(members) for members in groups]
        torch.testing.assert_close(flow.x[image], x, atol=1e-4, rtol=1e-4)
        slot = {n: PREFIX + j for j, members in enumerate(groups) for n in members}
        expected = x[[*range(PREFIX), *(slot[n] for n in range(15))]]
        torch.testing.assert_close(restored.x[image], expected, atol=1e-4, rtol=1e-4)
        # Pictures say the same.
        group, stands_for = (t[image].tolist() for t in reducer.token_map(flow))
        assert [n for n in range(15) if group[n] == 1] == sorted(flow.index[image].tolist())
        assert all(len({stands_for[n] for n in members}) == 1 for members in groups)
        assert len(set(stands_for)) == len(groups)


def test_pictures_of_sublayers_show_what_merged_for_attention():
    reducer, tokens = tome(r=5), some_tokens(1)
    assert reducer.token_map(tokens) is None
    reducer.attention(0, Attention(), tokens.x, tokens)
    group, stands_for = reducer.token_map(tokens)
    for members in merge_slowly([[n] for n in range(15)], tokens.patches[0], 5):
        assert {stands_for[0, n].item() for n in members} == {members[0]}
        assert [group[0, n].item() for n in members] == [1] + [0] * (len(members) - 1)
    assert reducer.token_map(reducer.after_layer(0, tokens)) is None


def test_weights_of_merged_tokens_are_summed_in_float32():
    # In bfloat16, 256 + 1 is 256.
    reducer = tome(mode='progressive', r=1)
    tokens = some_tokens(1, (1, 2))
    tokens = tokens.replace(x=tokens.x.bfloat16(), size=torch.tensor([[1., 256.]]))
    reducer.attention(0, Attention(), tokens.x, tokens)
    merged = reducer.between(0, tokens)
    assert merged.size.tolist() == [[257.]] and merged.x.dtype == torch.bfloat16


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


@pytest.mark.parametrize('mode', ['sublayer', 'progressive'])
@pytest.mark.parametrize('grid', [(1, 1), (1, 2)])
def test_very_small_grids(mode, grid):
    tokens = run_progressive(tome(2, mode=mode), some_tokens(2, grid), 2)
    assert tokens.x.isfinite().all()
    assert tome(2, mode=mode).restore(tokens).patches.shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize('settings, words', [
    (dict(mode='global'), r"mode='global' must be one of sublayer, progressive"),
    (dict(r=0.6), r'r=0.6 must be a share from 0 to 0.5'),
    (dict(r=-1), r'r=-1 must be'),
    (dict(r='much'), r"r='much' must be"),
    (dict(r=[1, 2]), r'r=\[1, 2\] has 2 values for 4 layers'),
    (dict(r=[1, 2, 3, 0.7]), r'r=\[1, 2, 3, 0.7\] must be'),
    (dict(r=(8, 2)), r'r=\(8, 2\) must be .* tuple \(r, inflect\) with an inflect from -1 to 1'),
    (dict(r=(0.4, 1)), r'r=\(0.4, 1\) cannot work'),
    (dict(layers=(0, 5)), r'layers=\(0, 5\)'),
])
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        tome(**settings)
