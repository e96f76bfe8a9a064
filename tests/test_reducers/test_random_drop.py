import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.ops.dropping import nearest_kept, pseudo_random
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .test_contract import images
from .test_contract import vit as backbone

GRID, CHANNELS, PREFIX = (6, 9), 16, 2


def random_drop(depth=6, **settings):
    settings = {'restore': 'last', **settings}  # the default gives back a change
    return build_token_reducer(dict(type='Random', **settings), BackboneInfo(depth, CHANNELS, PREFIX))


def some_tokens(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(batch, PREFIX + 54, CHANNELS, generator=generator), GRID, PREFIX)


@pytest.mark.parametrize('restore', ['last', 'copy'])
@pytest.mark.parametrize('settings', [dict(ratio=0.7), dict(every=4)], ids=str)
def test_dropped_positions_are_given_back_token_by_token(settings, restore):
    reducer = random_drop(layer=2, restore=restore, **settings)
    tokens = some_tokens()
    assert reducer.before_layer(1, tokens) is tokens
    inside = reducer.before_layer(2, tokens)
    out = reducer.restore(inside.replace(x=inside.x * 2 + 1))
    group, stands_for = reducer.token_map(inside)
    for image in range(2):
        kept = inside.index[image].tolist()
        assert kept == sorted(set(kept)) and len(kept) == reducer.token_schedule(GRID, 6)[2]
        for place, own in enumerate(tokens.patches[image]):
            away = {p: (p // 9 - place // 9) ** 2 + (p % 9 - place % 9) ** 2 for p in kept}
            nearest = min(kept, key=lambda p: (away[p], p))
            source = nearest if restore == 'copy' else place
            refined = tokens.patches[image, source] * 2 + 1
            assert torch.equal(out.patches[image, place], refined if source in kept else own)
            assert group[image, place] == (place in kept) and stands_for[image, place] == source
    assert torch.equal(out.prefix, tokens.prefix * 2 + 1)
    assert out.index is None and out.size is None and out.undo is None


def test_what_left_follows_its_nearest_token_and_that_one_its_own():
    reducer, tokens = random_drop(restore='residual', r=[14, 20, 9], layers=(0, 1, 3)), some_tokens()
    generator, here, followed = torch.Generator().manual_seed(2), set(range(54)), {}
    for i in range(6):
        before, tokens = tokens, reducer.before_layer(i, tokens)
        if tokens is not before:
            seen = dict(zip(sorted(here), before.patches[1]))
            left = set(tokens.index[1].tolist())
            for place in here - left:
                away = {p: (p // 9 - place // 9) ** 2 + (p % 9 - place % 9) ** 2 for p in left}
                nearest = min(left, key=lambda p: (away[p], p))
                followed[place] = nearest, seen[place] - seen[nearest]
            here = left
        tokens = reducer.after_layer(i, tokens.replace(x=tokens.x + torch.randn(tokens.x.shape, generator=generator)))
    value = dict(zip(sorted(here), tokens.patches[1]))

    def restored(place):
        return value[place] if place in here else restored(followed[place][0]) + followed[place][1]

    assert len(here) == 11 and any(nearest not in here for nearest, _ in followed.values())
    out = reducer.restore(tokens).patches[1]
    torch.testing.assert_close(out, torch.stack([restored(place) for place in range(54)]))
    _, stands_for = reducer.token_map(tokens)
    for place in range(54):
        end = place
        while end not in here:
            end = followed[end][0]
        assert stands_for[1, place] == end


def test_every_third_token_is_kept():
    inside = random_drop(layer=0, every=3).before_layer(0, some_tokens())
    assert inside.index[0].tolist() == list(range(0, 54, 3))
    assert random_drop(layer=0, every=5).token_schedule(GRID, 6) == [11] * 6


def test_which_tokens_depends_on_the_seed_alone():
    def kept(seed, data):
        return random_drop(layer=0, seed=seed).before_layer(0, some_tokens(3, data)).index

    assert torch.equal(kept(0, data=1), kept(0, data=2))
    assert torch.equal(kept(0, 1)[0], kept(0, 1)[2])
    assert len({tuple(kept(seed, 1)[0].tolist()) for seed in range(8)}) == 8


def test_tokens_are_dropped_everywhere_alike():
    tokens = Tokens(torch.zeros(1, 1600, 4), (40, 40), 0)
    kept = [random_drop(layer=0, ratio=0.75, seed=n).before_layer(0, tokens).index[0] for n in range(20)]
    share = [torch.bincount(index // 200, minlength=8) / 200 for index in kept]
    # 20 draws of 200 positions each: a standard deviation of 0.007 around a quarter.
    assert (torch.stack(share).mean(0) - 0.25).abs().max() < 0.03
    assert torch.stack(share).std() > 0.01


def test_a_token_without_a_position_is_nearest_to_none():
    index = torch.tensor([[0, 4, 6]])  # 6 of 2x3 patches: no position
    assert nearest_kept(index, (2, 3))[0].tolist() == [0, 0, 1, 0, 1, 1]


def test_counts():
    assert random_drop(24).token_schedule((40, 40), 24) == [1600] * 10 + [800] * 14
    assert random_drop(ratio=0.99, layer=0).token_schedule((2, 2), 6) == [1] * 6


@pytest.mark.parametrize('restore', ['last', 'copy'])
def test_dropping_costs_no_product(restore):
    count = count_flops(backbone(dict(type='Random', layer=0, ratio=0.2, restore=restore)), images(1))
    assert count.unsupported == {}
    # 35 patches, of which 28 are left: every product of the layers shrinks, and none is added.
    plain, length, c = count_flops(backbone(None), images(1)), 29, 32
    saved = [12 * n * c * c + 2 * n * n * c + 10 * n * c for n in (36, length)]
    assert plain.total - count.total == 4 * (saved[0] - saved[1])


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(ratio=1), 'ratio=1 must be a share of at least 0, below 1'),
        (dict(ratio=-0.1), 'ratio=-0.1'),
        (dict(ratio=0.5, every=2), 'ratio=0.5 and every=2 exclude each other'),
        (dict(every=0), 'every=0 must be a whole number from 1 to'),
        (dict(every=1.5), 'every=1.5 must be a whole number'),
        (dict(seed=-1), 'seed=-1 must be a whole number from 0 to'),
        (dict(layer=6), 'layer=6 must be a whole number from 0 to 5'),
        (dict(restore='mean'), "restore='mean' must be one of last, copy, residual"),
        (dict(layer=5, fusion='llf'), r"layer=5 is the last layer, and with fusion='llf' it gets all tokens"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        random_drop(**settings)


@pytest.mark.parametrize('seed', [0, 5, -3, 2**40])
def test_the_hash_is_exact_on_every_device(seed):
    prime, expected = 2**31 - 1, []
    for value in range(1, 501):
        for offset in (seed, 1):
            value = pow(value * 48271 + offset * 16807, 5, prime)  # whole numbers without a limit
        expected.append(value)
    assert torch.equal(pseudo_random(500, seed, 'cpu'), torch.tensor(expected) / prime)
