import math

import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.ops.attention import attention_weights, class_attention
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.base import attend
from mmtr.tokens import Tokens

from .test_contract import images
from .test_contract import vit as backbone

GRID, CHANNELS, PREFIX, HEADS = (4, 5), 16, 2, 4


def evit(depth=6, num_prefix=PREFIX, **settings):
    settings = {'restore': 'last', **settings}  # the default gives back a change
    return build_token_reducer(dict(type='EViT', **settings), BackboneInfo(depth, CHANNELS, num_prefix))


class Attention(TokenAttention):
    """Queries and keys drawn anew for each layer; the branch adds values that depend on the slot."""

    def __init__(self, length, seed):
        generator = torch.Generator().manual_seed(seed)
        self.q, self.k = torch.randn(2, 2, HEADS, length, 4, generator=generator) * 2

    def qkv(self, x):
        return self.q, self.k, x

    def attend(self, q, k, v):
        return v.cumsum(1) / 10

    branch = None  # a layer that reduces must not compute attention twice


def run_one(x, attentions, keep_rate, fuse, restore):
    """One image through layers that reduce: x (N, C) patch tokens and prefix before them, token by token."""
    prefix, tokens = x[:PREFIX], x[PREFIX:]
    places = list(range(len(tokens)))
    last = {p: t for p, t in zip(places, tokens)}
    for received, branch in attentions:
        x = torch.cat([prefix, torch.stack(list(tokens))])
        x = x + branch(x)
        prefix, tokens = x[:PREFIX], x[PREFIX:]
        last.update({p: t for p, t in zip(places, tokens) if p is not None})
        received = received[PREFIX:].tolist()
        ranked = sorted(range(len(tokens)), key=lambda n: -received[n])
        count = math.ceil(keep_rate * len(tokens))
        kept, others = sorted(ranked[:count]), ranked[count:]
        left = [tokens[n] for n in kept]
        left_places = [places[n] for n in kept]
        if fuse:
            left.append(sum(received[n] * tokens[n] for n in others) / sum(received[n] for n in others))
            left_places.append(None)
        prefix, tokens, places = prefix * 2, [t * 2 for t in left], left_places
    last.update({p: t for p, t in zip(places, tokens) if p is not None})
    if restore == 'copy':
        stay = [p for p in places if p is not None]
        for p in last:
            away = {s: (p // GRID[1] - s // GRID[1]) ** 2 + (p % GRID[1] - s % GRID[1]) ** 2 for s in stay}
            # Where the fused token alone was kept, there is no other.
            last[p] = tokens[places.index(min(stay, key=lambda s: (away[s], s)))] if stay else tokens[0]
    return torch.stack([last[p] for p in range(GRID[0] * GRID[1])]), places, prefix


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(keep_rate=0.5),
        dict(keep_rate=0.3, fuse=False),
        dict(keep_rate=0.5, restore='copy'),
        dict(keep_rate=0.1, restore='copy'),
        dict(keep_rate=0.6, fuse=False, restore='copy'),
    ],
    ids=str,
)
def test_matches_the_paper_token_by_token(settings):
    reducer = evit(layers=(1, 3, 4), **settings)
    generator = torch.Generator().manual_seed(1)
    start = flow = Tokens(torch.randn(2, PREFIX + 20, CHANNELS, generator=generator), GRID, PREFIX)
    schedule, layers = reducer.token_schedule(GRID, 6), []
    for i in (1, 3, 4):
        assert flow.patches.shape[1] == schedule[i]
        attn = Attention(flow.x.shape[1], seed=i)
        layers.append((attention_weights(attn.q, attn.k)[:, :, 0].mean(1), lambda x: x.cumsum(0) / 10))
        branch, flow = attend(reducer, i, attn, flow.x, flow)
        flow = reducer.between(i, flow.replace(x=flow.x + branch))
        flow = flow.replace(x=flow.x * 2)
    out = reducer.restore(flow)
    settings = {**dict(keep_rate=0.8, fuse=True, restore='last'), **settings}
    for image in range(2):
        expected, places, prefix = run_one(start.x[image], [(r[image], b) for r, b in layers], **settings)
        assert flow.index[image].tolist() == [20 if p is None else p for p in places]
        torch.testing.assert_close(out.patches[image], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out.prefix[image], prefix, atol=1e-5, rtol=1e-5)
    assert out.index is None and out.size is None and out.undo is None
    if settings['fuse']:
        assert flow.size.sum(1).tolist() == [20, 20]
    group, stands_for = reducer.token_map(flow)
    for image in range(2):
        kept = sorted(set(flow.index[image].tolist()) - {20})
        assert group[image].nonzero().flatten().tolist() == kept
        assert all(stands_for[image, p] == p for p in kept)
        assert settings['restore'] == 'last' or not kept or set(stands_for[image].tolist()) == set(kept)


def test_class_attention_is_the_first_row_of_the_matrix():
    q, k = torch.randn(2, 3, HEADS, 7, 8, generator=torch.Generator().manual_seed(0))
    exact = attention_weights(q, k)[:, :, 0].mean(1)
    torch.testing.assert_close(class_attention(q, k), exact)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(class_attention(q, k), exact)


def test_reduces_between_attention_and_ffn():
    seen = []
    model = backbone(dict(type='EViT', keep_rate=0.5, layers=(1,)))
    for layer in model.layers:
        for norm in (layer.norm1, layer.norm2):
            norm.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.no_grad():
        model(images())
    assert seen == [36, 36, 36, 1 + 18 + 1, *[20] * 4]


def test_where_all_are_kept_nothing_is_fused():
    # 0.96 of 20 tokens, rounded up, are 20.
    reducer, attn = evit(keep_rate=0.96, layers=(1,)), Attention(PREFIX + 20, seed=0)
    attn.branch = lambda x: x
    tokens = Tokens(torch.randn(1, PREFIX + 20, CHANNELS), GRID, PREFIX)
    _, after = attend(reducer, 1, attn, tokens.x, tokens)
    assert reducer.between(1, after) is after and after.undo is None
    assert reducer.token_schedule(GRID, 6) == [20] * 6


def test_schedule_of_the_paper():
    # Kept: 0.8 of 1600, of 1280 + 1 and of 1025 + 1.
    assert evit(24).token_schedule((40, 40), 24) == [1600] * 8 + [1281] * 6 + [1026] * 6 + [822] * 4
    dropped = evit(24, fuse=False).token_schedule((40, 40), 24)
    assert dropped == [1600] * 8 + [1280] * 6 + [1024] * 6 + [820] * 4
    assert evit(12).layers == (3, 6, 9)


@pytest.mark.parametrize('keep_rate, published', [(0.9, 572.01), (0.8, 500.19), (0.5, 351.83)])
def test_counts_give_the_published_gflops(keep_rate, published):
    def attention(n):
        return 5 * n * 1024 + 4 * n * 1024**2 + 2 * n * n * 1024  # norm, projections, products

    def ffn(n):
        return 5 * n * 1024 + 8 * n * 1024**2

    entering = evit(24, keep_rate=keep_rate).token_schedule((40, 40), 24)
    # A layer's FFN is on what the next layer sees.
    counts = zip(entering, [*entering[1:], entering[-1]])
    saved = 24 * (attention(1601) + ffn(1601)) - sum(attention(n + 1) + ffn(m + 1) for n, m in counts)
    assert 658.98 - saved / 1e9 == pytest.approx(published, abs=0.5)


def test_only_one_row_of_attention_is_computed():
    # To fuse one token leaves as many as before, so that the cost of choosing stands alone.
    plain = count_flops(backbone(None), images(1))
    count = count_flops(backbone(dict(type='EViT', keep_rate=0.97, layers=(3,))), images(1))
    assert count.unsupported == {}
    row, fusing = 36 * 32, 1 * 32
    assert count.total - plain.total == row + fusing


def test_weights_that_underflow_leave_no_nan():
    reducer = evit(layers=(0,), keep_rate=0.5)
    tokens = Tokens(torch.randn(1, 22, CHANNELS), GRID, PREFIX, memo=dict(class_attention=torch.zeros(1, 20)))
    assert reducer.between(0, tokens).x.isfinite().all()


def test_needs_a_class_token():
    with pytest.raises(UserError, match="type='EViT' reads the class token, and this backbone has none"):
        evit(num_prefix=0)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(keep_rate=0), 'keep_rate=0 must be a share above 0, up to 1'),
        (dict(keep_rate=1.2), 'keep_rate=1.2'),
        (dict(keep_rate='0.5'), "keep_rate='0.5'"),
        (dict(layers=3), 'layers=3 must be a list, each'),
        (dict(layers=(3, 6)), r'layers=\(3, 6\) must be a list, each a whole number from 0 to 5'),
        (dict(fuse='no'), "fuse='no' must be True or False"),
        (dict(restore='zero'), "restore='zero' must be one of last, copy, residual"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        evit(**settings)
