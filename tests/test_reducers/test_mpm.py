"""Mutual pair merging written out pair by pair, for one image."""

import pytest
import torch

from mmtr import UserError
from mmtr.ops.matching import mutual_matching
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .references import likeness

GRID, CHANNELS, PREFIX = (5, 7), 4, 2


def mpm(depth=6, **settings):
    return build_token_reducer(dict(type='MPM', **settings), BackboneInfo(depth, CHANNELS, PREFIX))


def images_of_tokens():
    """Three images: noise, noise in pairs of similar tokens, and a curve, along which few are mutual."""
    x = torch.randn(3, PREFIX + 35, CHANNELS, generator=torch.Generator().manual_seed(0))
    x[1, PREFIX + 1 :: 2] = x[1, PREFIX:-1:2] + 0.1 * x[1, PREFIX + 1 :: 2]
    angles = torch.linspace(0, 1.5, 35).square()
    x[2, PREFIX:] = torch.stack([angles.cos(), angles.sin(), angles * 0, angles * 0], 1)
    return Tokens(x, GRID, PREFIX)


def mutual_pairs(x):
    """(i, j), i < j, of tokens x (N, C), each of which is the first of those most similar to the other."""
    n = len(x)
    best = [max((j for j in range(n) if j != i), key=lambda j: (likeness(x[i], x[j], 'cosine'), -j)) for i in range(n)]
    return [(i, j) for i, j in enumerate(best) if i < j and best[j] == i]


def merged_slowly(x, groups):
    """Tokens and their patches after mutual pairs merged, both with the weight 1/2."""
    pairs = dict(mutual_pairs(x))
    left = [i for i in range(len(x)) if i not in pairs.values()]
    tokens = [(x[i] + x[pairs[i]]) / 2 if i in pairs else x[i] for i in left]
    return torch.stack(tokens), [groups[i] + (groups[pairs[i]] if i in pairs else []) for i in left]


@pytest.mark.parametrize('restore', ['copy', 'residual'])
@pytest.mark.parametrize('layers', [(1, 3), (0, 2, 5), (4,)])
def test_merging_matches_the_paper_pair_by_pair(layers, restore):
    reducer = mpm(layers=layers, restore=restore)
    flow = tokens = images_of_tokens()
    for i in range(6):
        flow = reducer.before_layer(i, flow)
        flow = flow.replace(x=flow.x.square() + 1 if i == 3 else flow.x * 2 + 1)
    out, left = reducer.restore(flow), []
    for image, own in enumerate(tokens.patches):
        x, groups, beside = own, [[p] for p in range(35)], 0
        for i in range(6):
            if i in layers:
                before, old = x, groups
                x, groups = merged_slowly(x, groups)
                # What a patch has beside the token that stands for it, from now until it is given back.
                beside = spread(before, old) + beside - spread(x, groups)
            x = x.square() + 1 if i == 3 else x * 2 + 1
        left.append(len(groups))
        padding = flow.patches.shape[1] - len(groups)
        assert flow.size[image].tolist() == [len(members) for members in groups] + [0] * padding
        assert flow.index[image, : len(groups)].tolist() == [members[0] for members in groups]
        torch.testing.assert_close(flow.patches[image, : len(groups)], x, atol=1e-5, rtol=1e-5)
        expected = spread(x, groups) + (beside if restore == 'residual' else 0)
        torch.testing.assert_close(out.patches[image], expected, atol=1e-4, rtol=1e-4)
        group, stands_for = (t[image].tolist() for t in reducer.token_map(flow))
        assert all(stands_for[p] == members[0] for members in groups for p in members)
        assert [p for p in range(35) if group[p]] == sorted(members[0] for members in groups)
    assert max(left) == flow.patches.shape[1] and len(set(left)) > 1
    assert min(left) >= reducer.token_schedule(GRID, 6)[-1]
    assert out.index is None and out.size is None and out.undo is None


def spread(x, groups):
    slot = {p: k for k, members in enumerate(groups) for p in members}
    return x[[slot[p] for p in range(35)]]


def test_an_image_merges_as_it_does_alone_and_attention_masks_the_padding():
    reducer, tokens = mpm(layers=(0, 1, 2)), images_of_tokens()
    flow = reducer.before_layer(0, tokens)
    together = reducer.before_layer(2, reducer.before_layer(1, flow))
    hidden = together.memo['bias'].isinf()
    assert hidden.any() and torch.equal(hidden, together.size == 0)
    for i in range(3):
        alone = tokens.replace(x=tokens.x[i : i + 1])
        for layer in range(3):
            alone = reducer.before_layer(layer, alone)
        assert alone.memo['bias'] is None
        n = alone.patches.shape[1]
        torch.testing.assert_close(together.patches[i, :n], alone.patches[0])
        assert torch.equal(together.size[i, :n], alone.size[0]) and not together.size[i, n:].any()
        assert torch.equal(together.index[i, :n], alone.index[0])


def test_ties_fall_on_the_smaller_index():
    # Four equal tokens and two equal others: the first finds the second, all others of a kind find the first.
    x = torch.tensor([[[1.0, 2], [3, 1], [1, 2], [1, 2], [3, 1], [1, 2]]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    assert mutual_matching(x, valid).tolist() == [[0, 1, 0, 3, 1, 5]]
    assert mutual_matching(torch.randn(1, 1, 16).expand(1, 690, 16), valid[:, :1].expand(1, 690)).tolist() == [
        [0, 0, *range(2, 690)]
    ]


def test_padding_is_never_matched():
    x = torch.tensor([[[1.0, 0], [0, 1], [0.9, 0.1], [1, 0]], [[1, 0], [0, 1], [1, 0], [0, 1]]])
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert mutual_matching(x, valid).tolist() == [[0, 1, 0, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize('grid', [(1, 1), (1, 2), (1, 3), (2, 2)])
def test_very_small_grids(grid):
    # The most similar pair of all is mutual, so that each step merges one.
    reducer, n = mpm(layers=(0, 1, 2)), grid[0] * grid[1]
    flow = tokens = Tokens(torch.randn(1, n, CHANNELS), grid)
    for i in range(3):
        flow = reducer.before_layer(i, flow)
    assert flow.patches.shape[1] == 1 and (n == 1 or flow.size.tolist() == [[n]])
    torch.testing.assert_close(reducer.restore(flow).patches, tokens.patches)


@pytest.mark.parametrize('depth, layers', [(24, (2, 5)), (12, (2, 5)), (4, (1, 2)), (2, (0, 1))])
def test_the_layers_are_those_of_the_paper(depth, layers):
    assert mpm(depth).layers == layers
    counts = mpm(depth).token_schedule((40, 40), depth)
    assert counts == [1600 if i < layers[0] else 800 if i < layers[1] else 400 for i in range(depth)]


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(layers=(2, 6)), r'layers=\(2, 6\) must be a list in rising order, each a whole number from 0 to 5'),
        (dict(layers=(5, 2)), r'layers=\(5, 2\) must be a list in rising order'),
        (dict(layers=2), r'layers=2 must be a list'),
        (dict(restore='none'), "restore='none' must be one of copy, residual"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        mpm(**settings)
