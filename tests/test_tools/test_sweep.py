"""tools/benchmark.py --sweep: what it writes, and what reads it."""

import json

import pytest
from mmengine.config import Config
from mmseg.registry import MODELS

from mmtr.analysis import sweep as measuring
from mmtr.analysis.prediction import read_sweep
from mmtr.analysis.sweep import check_plain
from mmtr.apis import apply_token_reduction
from mmtr.cli.sweeping import predictor
from mmtr.errors import UserError
from mmtr.inference.model import build_model
from tests.conftest import TOOLS
from tests.made_up_sweep import made_up, write


@pytest.fixture
def few(monkeypatch):
    """Few points and settings are measured."""
    monkeypatch.setattr(measuring, 'POINTS', 3)
    monkeypatch.setattr(measuring, 'SETTINGS', 1)
    monkeypatch.setattr(measuring, 'DRAWS', 6)


@pytest.fixture
def bench(tool):
    """Function that runs tools/benchmark.py; gives exit status and stderr."""
    return lambda config, *args: tool('benchmark', config, *args, '--device', 'cpu', '--repeats', 1)


@pytest.fixture
def backbone(config):
    """The backbone of ``config``, as the tools sweep it."""
    return apply_token_reduction(build_model(Config.fromfile(config)), None).backbone


def test_a_sweep_is_measured_written_and_read_back(bench, few, config, backbone, tmp_path):
    out = tmp_path / 'sweep.json'
    status, error = bench(config, '--shape', 64, 96, '--sweep', out, '--batch-size', 2)
    assert status == 0, error
    sweep = read_sweep(str(out))
    assert json.loads(out.read_text())['command'].startswith(str(TOOLS / 'benchmark.py'))
    assert sweep.settings == dict(shape=[64, 96], batch_size=2, dtype='float32', compiled=False, device='cpu')
    assert sweep.backbone == dict(
        type='VisionTransformer',
        depth=2,
        embed_dims=32,
        heads=2,
        ffn_channels=64,
        num_prefix=1,
        patch_size=[16, 16],
        out_indices=1,
        attn_backend='auto',
        windows=False,
        query_layers=0,
        peft=None,
    )
    assert [point['tokens'] for point in sweep.curve] == [1, 8, 16, 24]
    assert sweep.head_ms is not None and sweep.plain_ms > 0 and sweep.outside_ms > 0
    methods = {name.partition(',')[0] for name in sweep.own}
    assert {'TokenAdapter', 'GridPool', 'ToMe', 'EViT', 'Expediting', 'Random'} <= methods
    assert sweep.mismatch(backbone, dtype='float32') == ''
    reduction = dict(type='GridPool', layers=(0, 2))
    assert sweep.predict(reduction, backbone.build_reducer(reduction)).ms > 0


def test_only_a_plain_vit_is_swept(bench, config, tmp_path):
    def refused(*args):
        status, error = bench(*args, '--shape', 64, 64, '--sweep', tmp_path / 'sweep.json')
        assert status == 2 and not (tmp_path / 'sweep.json').exists()
        return error.splitlines()[-1]

    assert 'Error: --sweep measures one plain model, and 2 are given' in refused(config, config)
    assert '--json' in refused(config, '--json', tmp_path / 'out.json')
    model = MODELS.build(
        dict(
            type='mmtr.EVA02',
            img_size=(64, 64),
            embed_dims=32,
            num_layers=2,
            num_heads=2,
            with_cls_token=False,
            window_size=2,
            window_layers=(0,),
        )
    )
    with pytest.raises(UserError, match='--sweep measures layers that attend to all tokens, and EVA02 has windows'):
        check_plain(model)
    with pytest.raises(UserError, match='whose layers are alike, and SwinTransformer has stages: give a ViT'):
        check_plain(MODELS.build(dict(type='mmtr.SwinTransformer', embed_dims=12, depths=(1, 1, 1, 1))))


def test_a_sweep_of_something_else_stops_a_search(backbone, tmp_path):
    path, shapes = str(tmp_path / 'sweep.json'), {(1, 3, 64, 64)}
    sweep = made_up(backbone, (64, 64), {1: 1.0, 16: 9.0})
    write(tmp_path / 'sweep.json', sweep)
    reduction = dict(type='MPM', layers=(0,))
    alone = predictor(path, backbone, shapes, 'cpu', 1.0)(reduction)
    assert alone == pytest.approx(22 / (3 + 2 * (1 + 8 * 7 / 15)))
    # Half of the time is the head's, which is not reduced.
    assert predictor(path, backbone, shapes, 'cpu', 0.5)(reduction) == pytest.approx(2 / (1 + 1 / alone))
    with pytest.raises(UserError, match=r'images of 1x64x64 \(batch, height, width\), and the backbone gets 1x64x96: '):
        predictor(path, backbone, {(1, 3, 64, 96)}, 'cpu', 1.0)
    write(tmp_path / 'sweep.json', made_up(backbone, (64, 64), machine=dict(cpu='Z80')))
    with pytest.raises(UserError, match="was measured with cpu='Z80', and here it is .*: measure one here with tools"):
        predictor(path, backbone, shapes, 'cpu', 1.0)


@pytest.mark.slow
def test_a_test_says_that_a_hook_gains_nothing(tool, config, weights, backbone, tmp_path, monkeypatch):
    sweep = write(tmp_path / 'sweep.json', made_up(backbone, (64, 64), {1: 10.0, 16: 10.0}))
    monkeypatch.setenv('MMTR_SWEEP', str(sweep))
    status, error = tool('test', config, weights, '--token-reduction', 'GridPool')
    log = ' '.join(path.read_text() for path in tmp_path.rglob('*.log'))
    assert status == 0, error
    assert 'GridPool is predicted to be at most 1.0' in log and 'no setting that was measured there gains more' in log
    sweep.write_text('{')
    status, error = tool('test', config, weights, '--token-reduction', 'GridPool')
    assert status == 2 and f"Error: MMTR_SWEEP '{sweep}' is damaged" in error.splitlines()[-1]
