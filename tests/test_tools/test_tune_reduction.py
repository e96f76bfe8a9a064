import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import mmtr.analysis.judging
from mmtr.analysis.judging import Judge
from mmtr.apis import apply_token_reduction
from mmtr.inference.model import build_model
from tests.conftest import TOOLS, draw_scenes
from tests.made_up_sweep import made_up, write

pytest.importorskip('optuna')
ROOT = TOOLS.parent
DEMO = [ROOT / 'configs/segmenter_vit_demo.py', ROOT / 'demo/segmenter_vit_demo.pth']


class TokenClock(Judge):
    """A judge whose clock counts tokens: 0.1 ms for each that leaves a layer, 1 ms for the head."""

    def __init__(self, cfg, model, *args):
        self.seconds = 0.0
        for layer in model.backbone.layers:
            layer.register_forward_hook(lambda module, inputs, out: self.pass_(1e-4 * (out.shape[1] - 1)))
        model.decode_head.register_forward_hook(lambda *_: self.pass_(1e-3))
        super().__init__(cfg, model, *args, clock=lambda: self.seconds)

    def pass_(self, seconds):
        self.seconds += seconds


@pytest.fixture
def tune(monkeypatch, capsys):
    """Function that runs tools/tune_reduction.py on that clock; gives its exit status, stdout and stderr."""

    def run(*args):
        monkeypatch.setattr(mmtr.analysis.judging, 'Judge', TokenClock)
        monkeypatch.setattr(sys, 'argv', ['tune_reduction.py', *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(TOOLS / 'tune_reduction.py'), run_name='__main__')
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(tiny_segmenter, tmp_path):
    """Config and checkpoint of a stock Segmenter of two layers."""
    tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
    torch.manual_seed(0)
    model = build_model(tiny_segmenter)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.py', tmp_path / 'tiny.pth'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Four scenes of the demo."""
    return draw_scenes(tmp_path_factory.mktemp('drawn'), 4)


@pytest.mark.slow
def test_the_config_that_is_written_reaches_the_target_and_is_tested_as_any(tune, scenes, tmp_path, monkeypatch):
    out = tmp_path / 'tuned.py'
    options = [
        f'test_dataloader.dataset.data_root={scenes}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    status, printed, _ = tune(
        *DEMO,
        '--out',
        out,
        '--target-speedup',
        1.2,
        '--num-images',
        2,
        '--trials',
        4,
        '--method',
        'TokenAdapter',
        'Random',
        '--cfg-options',
        *options,
    )
    assert status == 0 and f'Wrote {out}' in printed
    said = re.search(
        r'# Measured on 2 images that the search did not see: (\S+)x as fast .* mIoU (\S+) '
        r'\(plain (\S+)\)',
        out.read_text(),
    )
    assert float(said[1]) >= 1.2 and 0 < float(said[2]) and float(said[3]) > 30
    cfg, plain = Config.fromfile(out), Config.fromfile(DEMO[0])
    reduction = cfg.model.backbone.pop('token_reduction')
    assert reduction.type in ('TokenAdapter', 'Random') and cfg.model == plain.model
    monkeypatch.setattr(sys, 'argv', ['test.py', str(out), str(DEMO[1]), '--work-dir', str(tmp_path / 'work')])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    assert json.loads(next((tmp_path / 'work').glob('*/*.json')).read_text())['mIoU'] > 5


def test_unlabelled_images_are_judged_by_agreement_and_a_stock_config_gets_the_hook(tune, tiny, tmp_path):
    out, images = tmp_path / 'new/tuned.py', tmp_path / 'data/images/validation'
    out.parent.mkdir()
    tiny[0].write_text(tiny[0].read_text() + 'test_dataloader["dataset"]["data_root"] = "gone"\n')
    args = [
        *tiny,
        '--out',
        out,
        '--images',
        images,
        '--target-speedup',
        1.1,
        '--method',
        'Random',
        '--num-images',
        3,
        '--trials',
        5,
    ]
    status, printed, error = tune(*args)
    assert status == 0, error
    said = re.search(r'mIoU against the plain predictions (\S+) \(plain 100.00\)', out.read_text())
    assert 0 < float(said[1]) < 100
    cfg = Config.fromfile(out)
    assert cfg.custom_hooks[0].type == 'mmtr.TokenReductionHook'
    assert type(build_model(cfg).backbone.token_reducer).__name__ == 'Random'


def test_a_target_out_of_reach_is_said_with_the_nearest_and_nothing_is_written(tune, tiny, tmp_path):
    out = tmp_path / 'tuned.py'
    status, printed, error = tune(*tiny, '--out', out, '--target-speedup', 50, '--num-images', 2, '--trials', 4)
    assert status == 2 and not out.exists()
    head, *rows = [line.split() for line in printed.splitlines()]
    assert head == ['method', 'speed-up', 'mIoU', 'plain', 'settings'] and 'front' in [row[0] for row in rows]
    assert {row[0] for row in rows[:-1]} <= {'front', 'runner-up'} and rows[-1][:3] == ['Of', '4', 'settings,']
    last = error.splitlines()[-1]
    assert last.startswith('Error: No setting reached a speed-up of 50 in 4 trials, so nothing was written; the near')
    tried = [json.loads(line) for line in (tmp_path / 'tuned.py.trials').read_text().splitlines()]
    outcomes = [attrs['outcome'] for attrs in (line.get('user_attr', {}) for line in tried) if 'outcome' in attrs]
    fastest = max(outcome['plain_ms'] / outcome['ms'] for outcome in outcomes)
    assert len(outcomes) == 4 and f'is {fastest:.2f}x as fast as plain' in last


@pytest.mark.slow
def test_a_setting_that_misses_on_held_out_images_is_not_written(tune, tiny, tmp_path, monkeypatch):
    measured = TokenClock.__call__

    def slower_elsewhere(self, reduction, batches):
        outcome = measured(self, reduction, batches)
        if batches is self.images.held_out:
            outcome = type(outcome)(outcome.accuracy, outcome.plain_accuracy, 1.05 * outcome.plain_ms, outcome.plain_ms)
        return outcome

    monkeypatch.setattr(TokenClock, '__call__', slower_elsewhere)
    out = tmp_path / 'tuned.py'
    status, _, error = tune(
        *tiny, '--out', out, '--target-speedup', 1.05, '--num-images', 2, '--trials', 4, '--method', 'Random'
    )
    assert status == 2 and not out.exists()
    assert '0.95x as fast' in error and 'on 2 images that the search had not seen' in error


@pytest.mark.slow
def test_it_goes_on_after_ctrl_c_and_with_more_trials(tune, tiny, tmp_path, monkeypatch):
    measured, calls = TokenClock.__call__, []

    def counted(self, *args):
        calls.append(args[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(self, *args)

    monkeypatch.setattr(TokenClock, '__call__', counted)
    args = [*tiny, '--out', tmp_path / 'tuned.py', '--max-drop', 90, '--method', 'Random', '--num-images', 2]
    status, _, error = tune(*args, '--trials', 4)
    assert status == 130 and 'Interrupted after 2 of 4 trials; the same command goes on from there.' in error
    assert tune(*args, '--trials', 4)[0] == 0
    assert len(calls) == 3 + 2 + 1  # the rest, and the verification
    (tmp_path / 'tuned.py').unlink()
    assert tune(*args, '--trials', 5)[0] == 0
    assert len(calls) == 3 + 2 + 1 + 1 + 1
    (tmp_path / 'tuned.py').unlink()
    status, _, error = tune(*args, '--trials', 5, '--seed', 1)
    assert status == 2 and 'with another seed: remove it' in error


def trials_in(path):
    """Values of a user attribute, in the order of the trials, by its name."""
    found = {}
    for line in map(json.loads, path.read_text().splitlines()):
        for name, value in line.get('user_attr', {}).items():
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.slow
def test_what_a_sweep_predicts_to_be_too_slow_is_not_measured(tune, tiny, tmp_path):
    backbone = apply_token_reduction(build_model(Config.fromfile(tiny[0])), None).backbone
    # As the clock: 0.1 ms for each token that leaves a layer.
    layer_ms = {n: 0.1 * n for n in (1, 16)}
    plain = dict(layer_ms=1.6, attention_ms=0.64)
    sweep = made_up(backbone, (64, 64), layer_ms, outside_ms=0.0, plain_ms=3.2, untouched=plain)
    found = {}
    for name, more in dict(all=[], some=['--sweep', write(tmp_path / 'sweep.json', sweep)]).items():
        args = [*tiny, '--out', tmp_path / f'{name}.py', '--target-speedup', 1.5, '--method', 'Random']
        status, printed, error = tune(*args, '--num-images', 1, '--trials', 4, *more)
        assert status == 0, error
        found[name] = trials_in(tmp_path / f'{name}.py.trials')
    skipped = found['some']['predicted']
    assert f'Of 4 settings (and {len(skipped)} that were skipped, since they are predicted' in printed
    assert skipped and max(skipped) < 0.93 * 1.5
    speeds = {name: [each['plain_ms'] / each['ms'] for each in tried['outcome']] for name, tried in found.items()}
    assert len(speeds['some']) == len(speeds['all']) == 4
    assert min(speeds['some']) >= 0.93 * 1.5 > min(speeds['all'])
    # The same command goes on, and skips and measures nothing twice.
    (tmp_path / 'some.py').unlink()
    assert tune(*args, '--num-images', 1, '--trials', 5, *more)[0] == 0
    again = trials_in(tmp_path / 'some.py.trials')
    assert len(again['outcome']) == 5 and again['predicted'][: len(skipped)] == skipped
    args[args.index(1.5)] = 50
    args[args.index(tmp_path / 'some.py')] = tmp_path / 'none.py'
    status, _, error = tune(*args, '--num-images', 1, '--trials', 1, *more)
    assert status == 2 and 'No setting is predicted to reach a speed-up of 50, so none was measured' in error


@pytest.mark.parametrize(
    'args, sentence',
    [
        (['--max-drop', '1', '--sweep', 'sweep.json'], '--sweep sweep.json predicts speed, of which --max-drop needs'),
        (['--target-speedup', '2', '--sweep', 'nowhere.json'], "--sweep 'nowhere.json' cannot be read"),
        (['--max-drop', '-1'], '--max-drop -1.0 must be at least 0'),
        (['--target-speedup', '0'], '--target-speedup 0.0 must be above 0'),
        (['--max-drop', '1', '--method', 'Magic'], "token_reduction.type='Magic' is unknown"),
        (['--max-drop', '1', '--images', 'nowhere'], "--images 'nowhere' holds no image"),
        (['--max-drop', '1', '--images', 'nowhere', '--metric', 'mDice'], '--metric mDice needs labels'),
        (['--max-drop', '1', '--metric', 'beauty'], '--metric beauty is none of the config'),
        (['--max-drop', '1', '--seed', '-1'], '--seed -1 must be at least 0'),
        (['--max-drop', '1', '--out', '{config}'], 'must be the name of a new .py file'),
        (['--max-drop', '1', '--out', 'nowhere/tuned.py'], '--out nowhere/tuned.py cannot be written'),
    ],
)
def test_bad_input_is_one_sentence(tune, tiny, tmp_path, args, sentence):
    args = [arg.format(config=tiny[0]) for arg in args]
    status, _, error = tune(*tiny, '--out', tmp_path / 'tuned.py', '--num-images', 2, '--trials', 1, *args)
    assert status == 2
    assert error.splitlines()[-1].startswith('Error: ') and sentence in error.splitlines()[-1]
    assert not Path(tmp_path / 'tuned.py').exists()


@pytest.mark.slow
def test_what_was_found_is_healed_by_its_config(tune, tiny, tool, tmp_path):
    config, checkpoint = tiny
    config.write_text(config.read_text().replace("type='VisionTransformer'", "type='mmtr.VisionTransformer'"))
    out = tmp_path / 'found.py'
    args = (config, checkpoint, '--target-speedup', 1.2, '--speed-of', 'backbone', '--method', 'GridPool')
    status, _, said = tune(*args, '--trials', 4, '--num-images', 2, '--heal', 3, '--out', out)
    assert status == 0, said
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.token_reduction.restore == 'learned' and cfg.load_from == str(checkpoint)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4)
    assert 'before it is healed' in out.read_text()
    assert tool('train', out, '--work-dir', tmp_path / 'healed') == (0, '')
    healed = tmp_path / 'healed' / 'iter_3.pth'
    assert tool('test', out, healed)[0] == 0
    state = torch.load(healed, weights_only=False)['state_dict']
    assert state['backbone.token_reducer.restoration.decode.weight'].abs().sum() > 0


@pytest.mark.parametrize('key', ['train_dataloader', 'optim_wrapper'])
def test_a_config_that_cannot_train_heals_nothing(tune, tiny, tmp_path, key):
    config, checkpoint = tiny
    config.write_text(config.read_text() + f'\n{key} = None\n')
    args = (config, checkpoint, '--target-speedup', 1.2, '--heal', 3, '--out', tmp_path / 'found.py')
    status, _, said = tune(*args)
    assert status == 2 and '--heal 3 trains, and config' in said
