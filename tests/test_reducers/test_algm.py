"""ALGM written out token by token for one image: from the paper's Sec. 3, and as the released code does it."""

from itertools import permutations
from statistics import mean, stdev

import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.models.backbones import VisionTransformer
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .references import bipartite_slowly

GRID, CHANNELS, PREFIX = (5, 7), 8, 2


def algm(depth=5, prefix=PREFIX, **settings):
    settings = {'restore': 'copy', **settings}  # the default gives back a change
    return build_token_reducer(dict(type='ALGM', **settings), BackboneInfo(depth, CHANNELS, prefix))


def images_of_tokens(grid=GRID, prefix=PREFIX):
    """Three images of few kinds of token and noise on them, in blocks of falling size."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(9, CHANNELS, generator=generator)
    height, width = torch.meshgrid(*(torch.arange(n) for n in grid), indexing='ij')
    patches = torch.stack([kinds[(height // tall * 3 + width // wide) % 9] for tall, wide in ((4, 4), (2, 4), (1, 2))])
    noise = torch.randn(3, *grid, CHANNELS, generator=generator)
    x = (patches + 0.3 * noise).flatten(1, 2)
    return Tokens(torch.cat([torch.randn(3, prefix, CHANNELS, generator=generator), x], 1), grid, prefix)


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0).item()


def local_slowly(x, grid, window, threshold, merged_first=False):
    """Members of each token that is left, by position of the first one; or, as released, most alike windows first."""
    groups, merged = [], []
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            members = [
                h * grid[1] + w
                for h in range(top, min(top + window, grid[0]))
                for w in range(left, min(left + window, grid[1]))
            ]
            alike = [cosine(x[a], x[b]) for a, b in permutations(members, 2)]
            if alike and mean(alike) > threshold:
                merged.append((-mean(alike), members))
            else:
                groups += [[n] for n in members]
    if merged_first:
        return [members for _, members in sorted(merged)] + sorted(groups)
    return sorted(groups + [members for _, members in merged])


def global_slowly(x, groups, threshold):
    """``groups``, whose tokens x holds, after each even one joined its most similar odd one."""
    even, odd = range(0, len(groups), 2), range(1, len(groups), 2)
    joined = {n: list(group) for n, group in enumerate(groups)}
    for a in even:
        best = max(odd, key=lambda b: cosine(x[a], x[b]), default=None)
        if best is not None and cosine(x[a], x[best]) > threshold:
            joined[best] += joined.pop(a)
    return list(joined.values())


def mean_of(x, groups):
    return torch.stack([torch.stack([x[n] for n in members]).mean(0) for members in groups])


def refine(tokens):
    """Stands for a layer: something that is not the identity, and keeps the mean of equal tokens."""
    return tokens.replace(x=tokens.x * 2 + 1)


@pytest.mark.parametrize('window', [2, 3])
@pytest.mark.parametrize('threshold', [0.9, 0.7, -1.0])
def test_merging_matches_the_paper_token_by_token(window, threshold):
    reducer = algm(local_layer=1, global_layer=3, window=window, threshold=threshold)
    flow = tokens = images_of_tokens()
    counts = []
    for i in range(5):
        flow = reducer.after_layer(i, refine(reducer.between(i, reducer.before_layer(i, flow))))
        counts.append(flow.patches.shape[1])
    restored = reducer.restore(flow)
    left = []
    for image in range(3):
        x = tokens.patches[image] * 2 + 1
        groups = local_slowly(x, GRID, window, threshold)
        # A merged token stands for its members: the global step weighs it by how many they are.
        merged = mean_of(x, groups) * 4 + 3
        groups = global_slowly(merged, groups, threshold)
        left.append(len(groups))
        assert sorted(flow.size[image].tolist()) == sorted([len(g) for g in groups] + [0] * (counts[-1] - len(groups)))
        out = mean_of(x, groups) * 16 + 15
        slot = {n: j for j, members in enumerate(groups) for n in members}
        expected = out[[slot[n] for n in range(35)]]
        torch.testing.assert_close(restored.patches[image], expected, atol=1e-4, rtol=1e-4)
        group, stands_for = (t[image].tolist() for t in reducer.token_map(flow))
        assert sorted(n for n in range(35) if group[n]) == sorted(set(stands_for))
        assert len(set(stands_for)) == len(groups)
        assert all(stands_for[n] in members for members in groups for n in members)
    assert counts[-1] == max(left) and counts == sorted(counts, reverse=True)
    if threshold > 0:
        assert len(set(left)) > 1
    else:
        assert counts == reducer.token_schedule(GRID, 5)
    torch.testing.assert_close(restored.prefix, tokens.prefix * 32 + 31)


@pytest.mark.parametrize('prefix', [0, 1, 2])
@pytest.mark.parametrize('window', [2, 3])
@pytest.mark.parametrize('local, later', [(1, 3), (2, 5), (None, 1), (1, None)])
def test_the_released_variant_matches_its_code_token_by_token(local, later, window, prefix):
    reducer = algm(
        prefix=prefix,
        variant='released',
        local_layer=local,
        global_layer=later,
        window=window,
        threshold=0.8,
        restore=None,
    )
    flow = tokens = images_of_tokens(prefix=prefix)
    counts = []
    for i in range(5):
        flow = reducer.between(i, refine(reducer.before_layer(i, flow)))
        counts.append(flow.patches.shape[1])
        flow = reducer.after_layer(i, refine(flow))
    restored = reducer.restore(flow)

    def above_the_usual(alike):
        return sum(a >= mean(alike) + stdev(alike) / later for a in alike)

    left = []
    for image, x in enumerate(tokens.x):
        groups = [[n] for n in range(35)]
        for layer in range(1, 6):
            x = x * 2 + 1
            sequence = [[n] for n in range(len(x))]
            if layer == local:
                of_grid = local_slowly(x[prefix:], GRID, window, 0.8, merged_first=True)
                sequence = sequence[:prefix] + [[prefix + n for n in members] for members in of_grid]
            elif layer == later:
                sequence = bipartite_slowly(x, prefix, above_the_usual)
            sizes = [1] * prefix + [len(members) for members in groups]
            x = torch.stack(
                [sum(sizes[n] * x[n] for n in members) / sum(sizes[n] for n in members) for members in sequence]
            )
            groups = [[n for j in members for n in groups[j - prefix]] for members in sequence[prefix:]]
            x = x * 2 + 1
        left.append(len(groups))
        sizes = flow.size[image].tolist()
        assert sorted(sizes) == sorted([len(g) for g in groups] + [0] * (counts[-1] - len(groups)))
        slot = {n: j for j, members in enumerate(groups) for n in members}
        expected = x[prefix:][[slot[n] for n in range(35)]]
        torch.testing.assert_close(restored.patches[image], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(restored.prefix[image], x[:prefix])
    assert counts[-1] == max(left) and min(left) < 35
    first, last = (layer or 0 for layer in (local, later or local))
    assert counts[: max(first - 1, 0)] == [35] * max(first - 1, 0) and len(set(counts[last - 1 :])) == 1
    assert all(n >= fewest for n, fewest in zip([35, *counts], reducer.token_schedule(GRID, 5)))


def test_merged_windows_come_first_in_the_released_variant():
    # The four windows of a 2x8 grid: alike, different, more alike, different.
    x = torch.tensor([0.0, 0.5, 0.0, 9.0, 1.0, 1.1, 0.0, 9.0]).repeat(2, 1).flatten()
    x = torch.stack([x.cos(), x.sin()], 1)[None]
    settings = dict(local_layer=1, global_layer=None, threshold=0.8)
    released = algm(prefix=0, variant='released', **settings).between(0, Tokens(x, (2, 8)))
    assert released.size.tolist() == [[4, 4, 1, 1, 1, 1, 1, 1, 1, 1]]
    assert released.index.tolist() == [[4, 0, 2, 3, 6, 7, 10, 11, 14, 15]]
    ours = algm(prefix=0, **settings).before_layer(1, Tokens(x, (2, 8)))
    assert ours.index.tolist() == [[0, 2, 3, 4, 6, 7, 10, 11, 14, 15]]


@pytest.mark.parametrize('variant', ['training_free', 'released'])
def test_each_image_gets_what_it_would_get_alone(variant):
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=(64, 96),
        embed_dims=32,
        num_layers=4,
        num_heads=4,
        out_indices=(0, 1, 2, 3),
        token_reduction=dict(type='ALGM', threshold=0.5, variant=variant, restore_at='before_norm'),
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.eval()
    images = torch.rand(3, 3, 80, 112) * 2 - 1
    images[1, :, :, 40:] = 1
    images[2] = 1
    computed_on = []
    model.layers[2].attn.attn.out_proj.register_forward_hook(lambda module, args, out: computed_on.append(out.shape[1]))
    with torch.no_grad():
        together = model(images)
        alone = [model(images[n : n + 1]) for n in range(3)]
    most, *each = computed_on
    assert most == each[0] > each[1] > each[2]
    for n in range(3):
        for out, own in zip(together, alone[n]):
            torch.testing.assert_close(out[n : n + 1], own, atol=2e-5, rtol=1e-4)


def test_padding_is_hidden_only_where_there_is_any():
    reducer, tokens = algm(threshold=0.9), images_of_tokens()
    assert reducer.before_layer(1, tokens.replace(x=tokens.x[:1])).memo['bias'] is None
    inside = reducer.before_layer(1, tokens)
    hidden = inside.memo['bias'].isinf()
    assert torch.equal(hidden, inside.size == 0) and hidden.any()


@pytest.mark.parametrize('prefix', [0, 1])
@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_very_small_grids_in_the_released_variant(grid, prefix):
    reducer = algm(threshold=0.99, local_layer=1, global_layer=2, variant='released', prefix=prefix)
    tokens = images_of_tokens(grid, prefix)
    flow = reducer.between(1, reducer.between(0, tokens))
    assert flow.x.isfinite().all()
    assert reducer.restore(flow).patches.shape == tokens.patches.shape


@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (2, 2)])
def test_very_small_grids(grid):
    reducer, tokens = algm(threshold=-1, local_layer=0, global_layer=1), images_of_tokens(grid)
    flow = reducer.before_layer(1, reducer.before_layer(0, tokens))
    assert flow.patches.shape[1] == 1
    restored = reducer.restore(flow).patches
    torch.testing.assert_close(restored, tokens.patches.mean(1, keepdim=True).expand_as(restored))


def test_the_global_layer_is_the_same_share_of_any_depth():
    assert [algm(depth).global_layer for depth in (12, 24)] == [5, 10]


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(threshold=88), r'threshold=88 must be a cosine similarity from -1 to 1'),
        (dict(threshold='high'), r"threshold='high' must be a cosine"),
        (dict(local_layer=5), r'local_layer=5 must be a whole number from 0 to 4'),
        (dict(global_layer=1.5), r'global_layer=1.5 must be a whole number from 0 to 5, or a share of the depth'),
        (dict(local_layer=3, global_layer=3), r'local_layer=3 must be less than global_layer=3'),
        (dict(window=1), r'window=1 must be a whole number from 2'),
        (dict(variant='paper'), r"variant='paper' must be one of training_free, released"),
        (dict(variant='released', local_layer=0), r'local_layer=0 must be a whole number from 1 to 5'),
        (
            dict(variant='released', local_layer=None, global_layer=0),
            r'global_layer=0 must be a whole number from 1 to 5',
        ),
        (dict(variant='released', global_layer=6), r'global_layer=6 must be a whole number from 0 to 5'),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        algm(**settings)
