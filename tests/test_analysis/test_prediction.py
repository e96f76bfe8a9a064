"""Predictions by a made-up sweep against a slow and obvious reference: tokens counted in a forward pass."""

import json
import logging

import pytest
import torch
from mmengine.logging import MMLogger

from mmtr.analysis.gain import warn_of_small_gains
from mmtr.analysis.layers import analyze_layers
from mmtr.analysis.prediction import events, fit, per_event, read_sweep, variant
from mmtr.analysis.sweep import Cut, idle_layers, layers_of, settings_to_measure, token_counts
from mmtr.errors import UserError
from mmtr.models.backbones import EVA02, BEiT, DINOv2, DINOv3, VisionTransformer
from mmtr.reducers.observer import reducer_of
from tests.made_up_sweep import LAYER_MS, made_up, write

SHAPE = (80, 112)  # 5x7 patches
REDUCTIONS = [
    dict(type='TokenAdapter', ratio=0.4, layers=(1, 3)),
    dict(type='GridPool', ratio=0.5, layers=(0, 4)),
    dict(type='ToMe', r=0.3, layers=(1, 3)),
    dict(type='ToMe', mode='progressive', r=0.2, layers=(1, 4)),
    dict(type='EViT', keep_rate=0.5, layers=(1, 3)),
    dict(type='Random', r=0.2, layers=(0, 1), fusion='llf'),
    dict(type='SegFormerPlusPlus', preset='2x2'),
]
COST = [0.5, 2.0, 3.0, 4.0]
MS = [10.0, 20.0, 30.0, 40.0]


@pytest.fixture(scope='module')
def backbone():
    return VisionTransformer(img_size=SHAPE, embed_dims=32, num_layers=4, num_heads=2, mlp_ratio=2).eval()


def predicted(backbone, reduction, **changes):
    """Prediction for a reduction by the made-up sweep."""
    return made_up(backbone, SHAPE, **changes).predict(reduction, backbone.build_reducer(reduction))


def interpolated(count):
    """ms of a layer by hand."""
    if count >= 35:
        return 20.5
    below = max(n for n in LAYER_MS if n <= count)
    above = min(n for n in LAYER_MS if n > count)
    share = (count - below) / (above - below)
    return (1 - share) * LAYER_MS[below] + share * LAYER_MS[above]


@pytest.mark.parametrize('reduction', REDUCTIONS, ids=str)
def test_prediction_is_the_sum_over_the_tokens_that_layers_compute(backbone, reduction):
    reducer = backbone.build_reducer(reduction)
    seen = analyze_layers(backbone, [torch.randn(1, 3, *SHAPE)], dict(own=reducer), repeats=1)['own']['layers']
    assert min(seen['attention_tokens']) < 35
    ms = 3.0
    for attention, ffn in zip(seen['attention_tokens'], seen['ffn_tokens']):
        ms += 0.4 * interpolated(attention) + 0.6 * interpolated(ffn)
    own = {variant(reduction): dict(per_event=[0, 0, 0, 0], measured=[])}
    found = predicted(backbone, reduction, own=own)
    assert found.ms == pytest.approx(ms) and found.speed_up == pytest.approx((3 + 4 * 20.5) / ms) and not found.bound
    # What the method itself takes comes on top: it reduces before some of the eight sublayers.
    counts = [35, *(n for pair in zip(seen['attention_tokens'], seen['ffn_tokens']) for n in pair)]
    ms += 4 * sum(n < 35 for n in counts) / 8
    for before, after in zip(counts, counts[1:]):
        if after < before:
            ms += 0.5 + 2 * before / 35 + 3 * before * after / 35**2
    own = {variant(reduction): dict(per_event=COST, measured=[])}
    assert predicted(backbone, reduction, own=own).ms == pytest.approx(ms)


@pytest.mark.parametrize('host', [DINOv2, DINOv3, EVA02, BEiT])
def test_layers_of_every_host_are_measured_at_any_number_of_tokens(host):
    model = host(img_size=(64, 96), patch_size=16, embed_dims=32, num_layers=2, num_heads=2).eval()
    seen, image = [], torch.randn(1, 3, 64, 96)
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.shape[1] - model.num_prefix))
    with torch.no_grad():
        plain = model(image)[0]
        with reducer_of(model, Cut(model.shape, 5, True)):
            cut = model(image)[0]
        with layers_of(model, idle_layers(model)):
            assert model(image)[0].shape == cut.shape == plain.shape
            embedded = model(image)[0]
    assert seen == [24, 24, 5, 5]
    # What layers did to the tokens is not given back.
    torch.testing.assert_close(cut, embedded)


def test_nothing_reduced_takes_what_plain_takes(backbone):
    for reduction in (None, dict(type='Random', r=0)):
        assert predicted(backbone, reduction).ms == made_up(backbone, SHAPE).plain_ms == 85


def test_what_depends_on_the_image_is_predicted_at_its_best(backbone):
    found = predicted(backbone, dict(type='MPM', layers=(0,)))
    assert found.bound and found.ms == pytest.approx(3 + 4 * interpolated(18))
    assert predicted(backbone, dict(type='GridPool')).bound  # its own cost is not known


def test_costs_are_found_again_and_none_is_negative():
    counted = [events([35, n, n, 35], [35, n, n, 35], 35) for n in (5, 10, 20, 30)]
    excess = [0.5 * each[0] + 3 * each[2] for each in counted]
    assert [sum(a * b for a, b in zip(fit(counted, excess, MS), each)) for each in counted] == pytest.approx(excess)
    assert fit(counted, [-1.0, -2.0, -1.0, -1.0], MS) == [0, 0, 0, 0]
    assert min(fit(counted, [5.0, 4.0, 2.0, 1.0], MS)) >= 0


def test_a_variant_that_was_not_measured_costs_the_mean_of_its_method():
    own = {
        variant(dict(type='GridPool', restore=r)): dict(per_event=[n] * 4) for r, n in (('copy', 1), ('residual', 3))
    }
    assert per_event(own, dict(type='GridPool', ratio=0.1)) == [3] * 4
    own.pop(variant(dict(type='GridPool')))
    assert per_event(own, dict(type='GridPool')) == [1] * 4 and per_event(own, dict(type='Random')) is None


def test_what_is_measured_covers_few_and_many_tokens_and_every_variant(backbone):
    counts = token_counts(690, 1)
    assert counts[0] == 1 and counts[-1] == 690 and {21, 127, 128, 639, 640} <= set(counts)
    assert len(counts) <= 26 and counts == sorted(set(counts)) and token_counts(2, 1) == [1, 2]
    chosen = settings_to_measure(backbone, (5, 7))
    drawn = {variant(dict(type='ToMe', mode=mode)) for mode in ('sublayer', 'progressive')}
    assert drawn <= set(chosen) and not any(name.startswith(('ALGM', 'MPM', 'DAR')) for name in chosen)
    for name, reductions in chosen.items():
        assert 1 <= len(reductions) <= 4 and {variant(reduction) for reduction in reductions} == {name}


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(machine=dict(cpu='Z80', threads=1)), "cpu='Z80', and here it is "),
        (dict(backbone=dict(type='VisionTransformer', depth=12)), 'depth=12, and here it is 4'),
        (
            dict(settings=dict(shape=[1, 2], batch_size=1, dtype='float16', compiled=False, device='cpu')),
            "dtype='float16', and here it is 'float32'",
        ),
    ],
)
def test_a_sweep_of_something_else_is_named(backbone, change, said):
    assert made_up(backbone, SHAPE).mismatch(backbone, dtype='float32') == ''
    assert said in made_up(backbone, SHAPE, **change).mismatch(backbone, dtype='float32')


@pytest.mark.parametrize(
    'damage',
    [
        lambda found: '{',
        lambda found: '[]',
        lambda found: json.dumps({**found, 'curve': []}),
        lambda found: json.dumps({**found, 'curve': found['curve'][::-1]}),
        lambda found: json.dumps({**found, 'untouched': {}}),
        lambda found: json.dumps({**found, 'plain_ms': None}),
        lambda found: json.dumps({**found, 'settings': dict(shape=3)}),
        lambda found: json.dumps({**found, 'own': {'GridPool': dict(per_event=[1], measured=[])}}),
        lambda found: json.dumps({name: value for name, value in found.items() if name != 'machine'}),
    ],
)
def test_a_damaged_file_is_one_sentence(backbone, tmp_path, damage):
    sweep = made_up(backbone, SHAPE)
    assert read_sweep(str(write(tmp_path / 'sweep.json', sweep))) == sweep
    (tmp_path / 'sweep.json').write_text(damage(json.loads((tmp_path / 'sweep.json').read_text())))
    with pytest.raises(UserError, match='is damaged, or no sweep: make one with tools/benchmark.py CONFIG'):
        read_sweep(str(tmp_path / 'sweep.json'))
    with pytest.raises(UserError, match='cannot be read'):
        read_sweep(str(tmp_path))


def test_after_the_head_is_not_predicted(backbone):
    late = dict(type='Expediting', restore='copy', restore_at='after_head')
    with pytest.raises(UserError, match='which a sweep does not predict'):
        predicted(backbone, late)


def test_a_setting_that_gains_nothing_here_says_so_if_there_is_a_sweep(backbone, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'callHandlers', lambda record: heard.append(record))

    def said(reduction, **changes):
        backbone.set_token_reduction(reduction)
        heard.clear()
        monkeypatch.setenv('MMTR_SWEEP', str(write(tmp_path / 'sweep.json', made_up(backbone, SHAPE, **changes))))
        warn_of_small_gains(torch.nn.Sequential(backbone))
        return [record.getMessage() for record in heard if record.levelno == logging.WARNING]

    slow, fast = dict(type='GridPool', ratio=0.1, layers=(3, 4)), dict(type='GridPool', ratio=0.5, layers=(0, 4))
    own = {
        variant(slow): dict(
            per_event=[1.0, 0, 0, 0],
            measured=[dict(token_reduction=fast, ms=50.0), dict(token_reduction=slow, ms=84.0)],
        )
    }
    try:
        (sentence,) = said(slow, own=own)
        assert sentence.startswith('GridPool is predicted to be 1.0') and f'{fast["ratio"]}' in sentence
        assert '80x112 pixels' in sentence and sentence.endswith('was 1.70x as fast there.')
        assert said(fast, own=own) == [] and said(None, own=own) == []
        (sentence,) = said(slow, machine=dict(cpu='Z80'))
        assert "predicts nothing of this model: it was measured with cpu='Z80'" in sentence
        monkeypatch.delenv('MMTR_SWEEP')
        heard.clear()
        warn_of_small_gains(backbone)
        assert heard == []
    finally:
        backbone.set_token_reduction(None)
