import itertools
import math

import pytest
import torch
from mmseg.models.backbones import VisionTransformer as Stock

from mmtr.analysis import layers
from mmtr.analysis.layers import analyze_layers
from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from tests.test_reducers.test_contract import eva02, every_reducer, images
from tests.test_reducers.test_contract import vit as backbone

SHAPE = BackboneInfo(depth=4, embed_dims=32, num_prefix=1)


def reducers(**cfgs):
    return {name: build_token_reducer(cfg, SHAPE) for name, cfg in cfgs.items()}


def mean_cosine(vectors):
    pairs = list(itertools.combinations(vectors, 2))
    return sum(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs) / len(pairs)


def test_diversity_and_similarity_are_those_of_the_stock_model():
    model = backbone(None)
    stock = Stock(img_size=(64, 96), embed_dims=32, num_layers=4, num_heads=4, final_norm=True, out_indices=(1, 3))
    stock.load_state_dict(model.state_dict())
    stock.eval()
    maps, tokens = [], []
    for layer in stock.layers:
        layer.attn.attn.register_forward_hook(lambda module, args, out: maps.append(out[1]))
        layer.register_forward_hook(lambda module, args, out: tokens.append(out[0, 1:]))
        # It asks for the mean over heads; the hook is to see each.
        layer.attn.attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, 'average_attn_weights': False}), with_kwargs=True
        )
    batch = images(2, 48, 64)
    expected = dict(attention_diversity=[], token_similarity=[])
    with torch.no_grad():
        for image in batch.split(1):
            maps.clear(), tokens.clear()
            stock(image)
            expected['attention_diversity'].append(
                [1 - sum(mean_cosine(head[1:]) for head in of_layer[0]) / 4 for of_layer in maps]
            )
            expected['token_similarity'].append([mean_cosine(of_layer) for of_layer in tokens])
    found = analyze_layers(model, batch.split(1), reducers(plain=None), repeats=1)['plain']['layers']
    for quantity, of_images in expected.items():
        mean = [sum(values) / 2 for values in zip(*of_images)]
        assert found[quantity] == pytest.approx(mean, abs=1e-5), quantity
        assert max(mean) - min(mean) > 0.01, 'layers that differ'


@every_reducer
def test_every_reducer_is_measured_and_left_alone(cfg):
    model = backbone(cfg)
    own, image = model.token_reducer, images(1)
    with torch.no_grad():
        before = model(image)
    found = analyze_layers(model, [image], dict(own=own), repeats=1)['own']
    assert set(found['layers']) == set(layers.QUANTITIES)
    alone = [count < 2 for count in found['layers']['attention_tokens']]  # such a layer has no pairs of tokens
    assert all(
        [math.isnan(value) for value in values] == (alone if quantity == 'attention_diversity' else [False] * 4)
        for quantity, values in found['layers'].items()
    )
    if own.fixed_count:
        assert found['layers']['attention_tokens'] == own.token_schedule((5, 7), 4)
        assert found['layers']['ffn_tokens'] == own.ffn_schedule((5, 7), 4)
    assert all(n >= fewest for n, fewest in zip(found['layers']['ffn_tokens'], own.ffn_schedule((5, 7), 4)))
    assert model.token_reducer is own
    assert not any('attend' in vars(layer.attn) for layer in model.layers)
    with torch.no_grad():
        for out, expected in zip(model(image), before):
            assert torch.equal(out, expected)


def test_a_rotary_backbone_is_measured():
    model = eva02(None)
    found = analyze_layers(model, [images(1)], dict(own=model.token_reducer), repeats=1)['own']['layers']
    assert found['attention_tokens'] == [35] * 4 and all(0 < value < 1 for value in found['attention_diversity'])


def test_attention_and_ffn_are_counted_apart():
    found = analyze_layers(
        backbone(None),
        [images(1)],
        reducers(evit=dict(type='EViT', keep_rate=0.5, layers=(1,)), tome=dict(type='ToMe', r=5, layers=(2, 3))),
        repeats=1,
    )
    assert found['evit']['layers']['attention_tokens'] == [35, 35, 19, 19]
    assert found['evit']['layers']['ffn_tokens'] == [35, 19, 19, 19]
    assert found['tome']['layers']['attention_tokens'] == found['tome']['layers']['ffn_tokens'] == [35, 35, 30, 35]


def test_similarity_is_of_the_restored_grid():
    found = analyze_layers(
        backbone(None),
        [images(1)],
        reducers(half=dict(type='Random', ratio=34 / 35, layer=2, restore='copy')),
        repeats=1,
    )['half']['layers']
    # One token is left for every patch: all alike, and it has no other to be compared with in attention.
    assert found['token_similarity'][2:] == pytest.approx([1, 1])
    assert all(map(math.isnan, found['attention_diversity'][2:]))


class Staring(TokenReducer):
    """The class token looks at itself, all patches at one of them, by a bias of each query."""

    def attention(self, i, attn, x, tokens):
        bias = torch.full((x.shape[1], x.shape[1]), -torch.inf)
        bias[0, 0] = bias[1:, 5] = 0
        return attn.attend(*attn.qkv(x), bias[None, None])


class Windowed(TokenReducer):
    """Attention within windows of 7 tokens, each its own sequence."""

    def attention(self, i, attn, x, tokens):
        return attn.branch(x.reshape(-1, 7, x.shape[2])).reshape(x.shape)


def test_a_bias_of_each_query_counts():
    found = analyze_layers(backbone(None), [images(1)], dict(staring=Staring(SHAPE)), repeats=1)
    assert found['staring']['layers']['attention_diversity'] == pytest.approx([0] * 4)


def test_tokens_of_all_windows_are_counted():
    found = analyze_layers(
        backbone(None, with_cls_token=False),
        [images(1)],
        dict(windowed=Windowed(BackboneInfo(depth=4, embed_dims=32, num_prefix=0))),
        repeats=1,
    )
    assert found['windowed']['layers']['attention_tokens'] == [35] * 4


def test_times_are_medians_without_the_warm_up(monkeypatch):
    ticks = itertools.chain.from_iterable([seconds] * 12 for seconds in (100, 1, 1, 7))
    clock = [0]

    def now():
        clock[0] += next(ticks)
        return clock[0]

    monkeypatch.setattr(layers, 'now', now)
    result = analyze_layers(backbone(None), [images(1)], reducers(plain=None), repeats=3)['plain']
    # A forward pass looks at the clock twice a layer, and twice for each of the two outputs: 12 times.
    assert result['layers']['ms'] == [1e3] * 4
    assert result['restore_ms'] == 2e3
    assert result['backbone_ms'] > 0
