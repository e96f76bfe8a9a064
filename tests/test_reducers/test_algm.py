"""ALGM written out token by token, from the paper's Sec. 3, for one image."""
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.models.backbones import VisionTransformer
from mmtr.reducers import BackboneShape, build_token_reducer
from mmtr.tokens import Tokens

GRID, CHANNELS, PREFIX = (5, 7), 8, 2


def algm(depth=5, **settings):
    settings = {'restore': 'copy', **settings}  # the default gives back a change
    return build_token_reducer(dict(type='ALGM', **settings), BackboneShape(depth, CHANNELS, PREFIX))


def images_of_tokens(grid=GRID):
    """Three images of few kinds of token and noise on them, in blocks of falling size."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(9, CHANNELS, generator=generator)
    height, width = torch.meshgrid(*(torch.arange(n) for n in grid), indexing='ij')
    patches = torch.stack([kinds[(height // tall * 3 + width // wide) % 9]
                           for tall, wide in ((4, 4), (2, 4), (1, 2))])
    noise = torch.randn(3, *grid, CHANNELS, generator=generator)
    x = (patches + 0.3 * noise).flatten(1, 2)
    return Tokens(torch.cat([torch.randn(3, PREFIX, CHANNELS, generator=generator), x], 1), grid, PREFIX)


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0).item()


def local_slowly(x, grid, window, threshold):
    """Members of each token that is left, by position of the first one."""
    groups = []
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            members = [h * grid[1] + w for h in range(top, min(top + window, grid[0]))
                       for w in range(left, min(left + window, grid[1]))]
            alike = [cosine(x[a], x[b]) for a, b in permutations(members, 2)]
            together = bool(alike) and sum(alike) / len(alike) > threshold
            groups += [members] if together else [[n] for n in members]
    return sorted(groups)


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
@pytest.mark.parametrize('threshold', [0.9, 0.7, -1.])
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
        assert sorted(flow.size[image].tolist()) == sorted([len(g) for g in groups] + [0] * (
            counts[-1] - len(groups)))
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


def test_each_image_gets_what_it_would_get_alone():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=(64, 96), embed_dims=32, num_layers=4, num_heads=4,
                              out_indices=(0, 1, 2, 3), token_reduction=dict(type='ALGM', threshold=0.5))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.eval()
    images = torch.rand(3, 3, 80, 112) * 2 - 1
    images[1, :, :, 40:] = 1
    images[2] = 1
    computed_on = []
    model.layers[2].attn.attn.out_proj.register_forward_hook(
        lambda module, args, out: computed_on.append(out.shape[1]))
    with torch.no_grad():
        together = model(images)
        alone = [model(images[n:n + 1]) for n in range(3)]
    most, *each = computed_on
    assert most == each[0] > each[1] > each[2]
    for n in range(3):
        for out, own in zip(together, alone[n]):
            torch.testing.assert_close(out[n:n + 1], own, atol=2e-5, rtol=1e-4)


def test_padding_is_hidden_only_where_there_is_any():
    reducer, tokens = algm(threshold=0.9), images_of_tokens()
    assert reducer.before_layer(1, tokens.replace(x=tokens.x[:1])).memo['bias'] is None
    inside = reducer.before_layer(1, tokens)
    hidden = inside.memo['bias'][:, 0, 0].isinf()
    assert not hidden[:, :PREFIX].any() and torch.equal(hidden[:, PREFIX:], inside.size == 0) and hidden.any()


@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (2, 2)])
def test_very_small_grids(grid):
    reducer, tokens = algm(threshold=-1, local_layer=0, global_layer=1), images_of_tokens(grid)
    flow = reducer.before_layer(1, reducer.before_layer(0, tokens))
    assert flow.patches.shape[1] == 1
    restored = reducer.restore(flow).patches
    torch.testing.assert_close(restored, tokens.patches.mean(1, keepdim=True).expand_as(restored))


def test_the_global_layer_is_the_same_share_of_any_depth():
    assert [algm(depth).global_layer for depth in (12, 24)] == [5, 10]


@pytest.mark.parametrize('settings, words', [
    (dict(threshold=88), r'threshold=88 must be a cosine similarity from -1 to 1'),
    (dict(threshold='high'), r"threshold='high' must be a cosine"),
    (dict(local_layer=5), r'local_layer=5 must be a whole number from 0 to 4'),
    (dict(global_layer=1.5), r'global_layer=1.5 must be a whole number from 0 to 4'),
    (dict(local_layer=3, global_layer=3), r'local_layer=3 must be less than global_layer=3'),
    (dict(window=1), r'window=1 must be a whole number from 2'),
])
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        algm(**settings)
