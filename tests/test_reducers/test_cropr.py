"""Token Cropr against what the paper says, written out query by query and token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.reducers import BackboneInfo, build_token_reducer

from .cropr_parts import CHANNELS, GRID, normalised, reducer, some_tokens
from .test_contract import images
from .test_contract import vit as backbone


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(num_heads=4),
        dict(projections='q'),
        dict(projections='k'),
        dict(projections='qkv', num_heads=2),
        dict(pre_norm=True),
        dict(pre_norm=True, projections=('q', 'k'), num_heads=4),
    ],
    ids=str,
)
def test_scores_are_the_sum_of_the_logits_over_heads_and_queries(settings):
    cropr, tokens = reducer(**settings), some_tokens()
    head, heads = cropr.heads['layer_01'], settings.get('num_heads', 1)
    if settings.get('pre_norm'):
        torch.nn.init.normal_(head.norm.weight)
        torch.nn.init.normal_(head.norm.bias)
    scores = cropr.score(1, tokens)
    with torch.no_grad():
        for image in range(2):
            expected = []
            for token in tokens.patches[image]:
                key = normalised(token, head.norm) if settings.get('pre_norm') else token
                key = head.k.weight @ key if 'k' in settings.get('projections', '') else key
                total = 0.0
                for query in head.queries:
                    query = head.q.weight @ query if 'q' in settings.get('projections', '') else query
                    for part in range(heads):
                        span = slice(part * CHANNELS // heads, (part + 1) * CHANNELS // heads)
                        total += (query[span] * key[span]).sum()
                expected.append(total)
            expected = torch.stack(expected)
            if settings.get('pre_norm'):  # the bias of the norm adds the same to all
                expected += (scores[image] - expected).mean()
            torch.testing.assert_close(scores[image], expected, atol=1e-4, rtol=1e-4)
    assert scores.dtype == torch.float32 and scores.std() > 0.1


@pytest.mark.parametrize(
    'settings', [dict(), dict(num_heads=4, projections='qkv', pre_norm=True), dict(mlp_ratio=0, num_heads=2)], ids=str
)
def test_auxiliary_prediction_is_attention_mlp_and_linear(settings):
    cropr, tokens = reducer(task='semantic', num_classes=5, **settings), some_tokens()
    head, heads, width = cropr.heads['layer_00'], settings.get('num_heads', 1), CHANNELS // settings.get('num_heads', 1)
    found = head(tokens.x)
    assert found.shape == (2, 24, 5)
    with torch.no_grad():
        x = tokens.x[1]
        if settings.get('pre_norm'):
            x = torch.stack([normalised(token, head.norm) for token in x])
        q, k, v = head.queries[7], x, x
        if 'projections' in settings:
            q, k, v = head.q.weight @ q, x @ head.k.weight.T, x @ head.v.weight.T
        seen = torch.empty(CHANNELS)
        for part in range(heads):
            span = slice(part * width, (part + 1) * width)
            share = (k[:, span] @ q[span] / math.sqrt(width)).softmax(0)
            seen[span] = share @ v[:, span]
        if heads > 1:
            seen = head.proj.weight @ seen + head.proj.bias
        if settings.get('mlp_ratio', 4):
            norm, first, _, second = head.mlp
            assert first.out_features == 4 * CHANNELS
            seen = seen + second(F.gelu(first(normalised(seen, norm))))
        expected = head.head[1](F.layer_norm(seen, (CHANNELS,)))
    torch.testing.assert_close(found[1, 7], expected, atol=1e-5, rtol=1e-4)


def test_queries_start_at_the_published_spread():
    queries = build_token_reducer(dict(type='Cropr'), BackboneInfo(3, 256, 1, (32, 32))).heads['layer_00'].queries
    assert queries.shape == (1024, 256) and queries.std().item() == pytest.approx(256**-0.5, rel=0.02)


def run(cropr, tokens, depth=6):
    """Layers that add their number to every token; the tokens that each one saw."""
    seen = []
    for i in range(depth):
        tokens = cropr.before_layer(i, tokens)
        seen.append(tokens)
        tokens = cropr.after_layer(i, tokens.replace(x=tokens.x + i))
    return cropr.restore(tokens), seen


@pytest.mark.parametrize('fusion', ['llf', 'none'])
def test_the_lowest_leave_and_come_back_in_raster_order(fusion):
    cropr, tokens = reducer(r=[3, 5], layers=(1, 3), fusion=fusion), some_tokens()
    out, seen = run(cropr, tokens)
    last = [24, 24, 21, 21, 16, 24 if fusion == 'llf' else 16]
    assert [s.patches.shape[1] for s in seen] == last == cropr.token_schedule(GRID, 6)
    for image in range(2):
        value, here = list(tokens.patches[image]), set(range(24))
        for i in range(6):
            if i in (2, 4):
                scorer = cropr.heads[f'layer_{i - 1:02}'].queries.sum(0)
                ranked = sorted(here, key=lambda p: -(value[p] @ scorer).item())
                here = set(ranked[:-3] if i == 2 else ranked[:-5])
            if i == 5 and fusion == 'llf':
                here = set(range(24))
            position = seen[i].index[image] if seen[i].index is not None else torch.arange(24)
            assert position.tolist() == sorted(here)
            value = [v + i if p in here else v for p, v in enumerate(value)]
        torch.testing.assert_close(out.patches[image], torch.stack(value))
    torch.testing.assert_close(out.prefix, tokens.prefix + 15)
    assert out.index is None and out.size is None and out.undo is None


def test_by_region_each_part_of_the_image_loses_the_same():
    cropr, tokens = reducer(r=8, layers=(1,), region=2), some_tokens()
    tokens.patches[:, :12] += 100 * cropr.heads['layer_01'].queries.sum(0)  # the upper half, far above the lower
    (_, everywhere), (_, by_region) = (run(c, tokens) for c in (reducer(r=8, layers=(1,)), cropr))
    scorer = cropr.heads['layer_01'].queries.sum(0)
    for image in range(2):
        assert set(range(12)) <= set(everywhere[2].index[image].tolist())
        kept = set(by_region[2].index[image].tolist())
        value = tokens.patches[image] + 1
        assert len(kept) == 16
        for corner in (0, 2, 4, 12, 14, 16):
            region = sorted((corner, corner + 1, corner + 6, corner + 7), key=lambda p: -(value[p] @ scorer).item())
            assert {*region[:2]} <= kept and region[3] not in kept  # 16 of 24: two or three of each four


def published(prefix, kind='Cropr', **settings):
    return reducer(kind, 24, (32, 32), prefix, **settings).token_schedule((32, 32), 24)


@pytest.mark.parametrize('kind', ['Cropr', 'Random'])
def test_published_counts(kind):
    # EVA-02-L at 512: 40 of 1024 patches leave after each of 22 modules.
    counts = [1024 - 40 * k for k in range(23)]
    assert published(0, kind, r=40, fusion='llf') == [*counts, 1024] and counts[-1] == 144
    assert published(1, kind, r=40 / 1024, fusion='llf') == [*counts, 1024]
    # The released code counts the class token and lets the first module take one more, 41: the sequences are
    # then 1025, 984, 944, ..., 144, all but the first multiples of 8. Rounding to these gives the same.
    with_class_token = [n + 1 for n in published(1, kind, r=40, multiple_of=8, fusion='llf')]
    assert with_class_token == [1025, *(1025 - 41 - 40 * k for k in range(22)), 1025] and with_class_token[-2] == 144


def test_default_schedule_is_the_published_one():
    assert published(0) == [*(1024 - 40 * k for k in range(23)), 1024]


def test_classification_of_the_paper():
    counts = reducer(depth=24, grid=(14, 14), prefix=1, r=8, task='classification').token_schedule((14, 14), 24)
    assert counts == [*(196 - 8 * k for k in range(23)), 196]


def test_stages_of_the_detector():
    cropr = reducer(depth=24, grid=(96, 96), r=0.15, layers=(5, 8, 11, 14, 20), task='multilabel')
    counts = cropr.token_schedule((96, 96), 24)
    left = [9216 - round(0.15 * 9216 * k) for k in range(6)]
    layers = [6, 3, 3, 3, 6, 2]
    assert counts == [n for n, times in zip(left, layers) for _ in range(times)] + [9216]


def test_rounding_counts_the_prefix_tokens_and_never_starts_by_itself():
    assert reducer(r=1, multiple_of=8, fusion='none').token_schedule(GRID, 6) == [24, 22, 22, 14, 14, 14]
    assert reducer(r=0, multiple_of=8).token_schedule((5, 5), 6) == [25] * 6
    assert reducer(r=0.2, multiple_of=64).token_schedule((2, 2), 6) == [4, 1, 1, 1, 1, 4]


def test_random_has_the_same_schedule_and_drops_without_a_look():
    settings = dict(r=[3, 5], layers=(1, 3), fusion='llf')
    tokens = some_tokens()
    (_, one), (_, two) = (run(reducer('Random', **settings), t) for t in (tokens, tokens.replace(x=-tokens.x)))
    assert [s.patches.shape[1] for s in one] == reducer(**settings).token_schedule(GRID, 6)
    assert torch.equal(one[4].index, two[4].index) and torch.equal(one[4].index[0], one[4].index[1])
    assert set(one[4].index[0].tolist()) < set(one[2].index[0].tolist())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'settings', [dict(), dict(num_heads=4, projections='qkv', pre_norm=True, multiple_of=8, fusion='none')], ids=str
)
def test_deployed_reducer_gives_the_same_and_holds_one_vector_a_module(settings, dtype):
    model = backbone(dict(type='Cropr', num_classes=5, **settings))
    small = backbone(dict(type='Cropr', num_classes=5, deploy=True, **settings))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith('token_reducer.')}
    own = model.token_reducer.deployed_state_dict()
    assert {name: tuple(value.shape) for name, value in own.items()} == {
        'scorers.layer_00': (32,),
        'scorers.layer_01': (32,),
    }
    small.load_state_dict({**state, **{f'token_reducer.{name}': value for name, value in own.items()}}, strict=True)
    with torch.no_grad(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        for a, b in zip(model(images()), small(images())):
            assert torch.equal(a, b)


def test_scores_do_not_tie_in_half_precision():
    cropr = reducer(grid=(32, 32), task='classification').bfloat16()
    tokens = some_tokens(1, (32, 32), 0)
    tokens = tokens.replace(x=tokens.x.bfloat16())
    with torch.autocast('cpu', torch.bfloat16):
        scores = cropr.score(0, tokens)
    assert len(scores[0].unique()) == 1024 and len(scores[0].bfloat16().unique()) < 800


def test_a_module_costs_a_multiply_add_a_channel_of_each_token():
    shared = dict(r=5, fusion='llf')
    cropr, random = (
        count_flops(backbone(dict(type=kind, **shared, **more)), images(1))
        for kind, more in (('Cropr', dict(deploy=True)), ('Random', dict(restore='last')))
    )
    assert cropr.unsupported == {} == random.unsupported
    assert cropr.total - random.total == 32 * (35 + 30)


def load(model, state):
    model.load_state_dict(state, strict=False)


def test_a_checkpoint_of_the_other_form_is_explained():
    model, small = (backbone(dict(type='Cropr', deploy=deploy)) for deploy in (False, True))
    with pytest.raises(UserError, match='is of training.*deploy=True: convert it with tools/deploy_model.py'):
        load(small, model.state_dict())
    with pytest.raises(UserError, match='written by tools/deploy_model.py.* set deploy=True'):
        load(model, small.state_dict())
    load(model, backbone(None).state_dict())
    load(small, backbone(None).state_dict())


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(r=7), r'r=7 after 4 layers takes 28 of the 24 patches of a 4x6 grid away'),
        (dict(r=[1, 2]), 'has 2 values, but tokens leave after 4 layers'),
        (dict(r=0.25), 'the shares must sum to less than 1'),
        (dict(r=-1), 'r=-1 must be a share of at least 0, below 1, or a whole number'),
        (dict(r=1.5), 'r=1.5 must be a share'),
        (dict(layers=3), 'layers=3 must be a list in rising order'),
        (dict(layers=(3, 1)), 'rising order'),
        (dict(layers=(0, 4)), "with fusion='llf' what left after layer 4 would be back at once"),
        (dict(layers=(0, 5), fusion='none'), r'layers=\(0, 5\) must be a list in rising order, each .* from 0 to 4'),
        (dict(multiple_of=0), 'multiple_of=0 must be a whole number from 1 to'),
        (dict(region=0), 'region=0 must be a whole number from 1 to'),
        (dict(fusion='late'), "fusion='late' must be one of llf, none"),
        (dict(task='depth'), "task='depth' must be one of semantic, multilabel, classification"),
        (dict(num_classes=0), 'num_classes=0 must be a whole number from 1 to'),
        (dict(num_heads=3), 'num_heads=3 does not divide the 16 channels'),
        (dict(projections='x'), "projections='x' must be some of q, k, v"),
        (dict(mlp_ratio=-1), 'mlp_ratio=-1 must be a number from 0'),
        (dict(deploy=1.5), 'deploy=1.5 must be True or False'),
        (dict(grid=None), 'does not tell how many there are: give it img_size'),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        reducer(**settings)


def test_a_count_that_does_not_fit_an_image_is_said_at_the_first_forward():
    model = backbone(dict(type='Cropr', r=11))
    model(images(1, 64, 96))
    with pytest.raises(UserError, match='r=11 after 2 layers takes 22 of the 16 patches of a 4x4 grid away'):
        model(images(1, 64, 64))


def test_random_drops_once_or_by_a_schedule():
    with pytest.raises(UserError, match='token_reduction has ratio and r: .*give either'):
        reducer('Random', ratio=0.5, r=3)
