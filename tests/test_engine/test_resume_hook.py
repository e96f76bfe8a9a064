"""A checkpoint that a training resumes is checked whole: what does not fit is one sentence, before anything is used."""

import copy
import math
import re
import shutil

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import OptimWrapper, PolyLR
from mmengine.runner import Runner
from torch.optim import SGD, AdamW

from mmtr.checks.run_state import check_state
from mmtr.engine.hooks import CheckpointHook, resume
from mmtr.engine.hooks.resume import check_fits
from mmtr.errors import UserError
from mmtr.weights.files import check_checkpoint, read_checkpoint
from tests.conftest import RUNS, draw_data, segmenter_cfg

DAMAGE = dict(
    none=None,
    text='x',
    list=[],
    dict={},
    negative=-1,
    huge=10**18,
    nan=math.nan,
    nested=[[{}]],
    tensor=torch.zeros(7),
    true=True,
)


class Ready(Exception):
    """A runner has built all that it builds before it reads the checkpoint."""


class Run:
    """A short run: its config, the checkpoint that it wrote at iteration 2 of 4, and checkpoints made of that."""

    def __init__(self, folder):
        draw_data(folder / 'data')
        self.folder, self.cfg = folder, segmenter_cfg(folder / 'data', folder / 'work')
        self.cfg.default_hooks.checkpoint = dict(
            type='mmtr.CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1, save_best='mIoU'
        )
        self.cfg.custom_hooks = [dict(type='EMAHook'), dict(type='mmtr.ResumeCheckHook')]
        self.runner(train_cfg=dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)).train()
        self.checkpoint = read_checkpoint(folder / 'work' / 'iter_2.pth')

    def runner(self, **changed):
        cfg = copy.deepcopy(self.cfg)
        cfg.merge_from_dict({**changed, 'experiment_name': f'run_{next(RUNS)}'})
        return Runner.from_cfg(cfg)

    def ready(self, **changed):
        """A runner about to read a checkpoint."""
        runner = self.runner(work_dir=str(self.folder / 'ready'), load_from='a.pth', resume=True, **changed)

        def load_checkpoint(*args, **kwargs):
            raise Ready

        runner.load_checkpoint = load_checkpoint
        with pytest.raises(Ready):
            runner.train()
        return runner

    def damaged(self, place, damage):
        """The checkpoint with ``damage`` at a place; None if there is nothing there that can be missing."""
        checkpoint = node = copy.copy(self.checkpoint)
        for key in place[:-1]:
            node[key] = copy.copy(node[key])
            node = vars(node[key]) if isinstance(node[key], HistoryBuffer) else node[key]
        if damage != 'missing':
            node[place[-1]] = DAMAGE[damage]
        elif isinstance(node, dict):
            del node[place[-1]]
        else:
            return None
        return checkpoint

    def refusal(self, runner, checkpoint, path='bad.pth'):
        """What is said about a checkpoint that cannot be resumed, or None."""
        try:
            check_checkpoint(checkpoint, path)
            check_state(checkpoint, path)
            check_fits(runner, checkpoint, path)
        except UserError as error:
            return str(error)


def children(node):
    """{key: value} of what is in a value."""
    if isinstance(node, HistoryBuffer):
        # A buffer that was saved has its functions among its values until it is copied.
        return {key: value for key, value in vars(node).items() if key != 'statistics_methods'}
    return node if isinstance(node, dict) else dict(enumerate(node)) if isinstance(node, list) else {}


def places(node, way=()):
    """The places in a checkpoint, two of each kind of weight or moment."""
    if way:
        yield way
    keys = list(children(node))
    alike = way in (('state_dict',), ('ema_state_dict',), ('optimizer', 'state')) or way[-1:] == ('params',)
    for key in keys[:2] if alike else keys:
        yield from places(children(node)[key], (*way, key))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def runner(run):
    return run.ready()


# What may be at a place although it was not: a fresh average, a setting of the optimizer that it says is taken.
ADMITTED = {
    ('state_dict',): '',
    ('state_dict', 'decode_head.cls_emb'): '',
    ('meta',): '',
    ('meta', 'iter'): '',
    ('meta', 'epoch'): '',
    ('meta', 'seed'): 'missing none',
    ('meta', 'dataset_meta'): 'missing none dict',
    ('message_hub',): '',
    ('message_hub', 'log_scalars'): 'dict',
    ('message_hub', 'runtime_info'): 'dict',
    ('message_hub', 'resumed_keys'): '',
    ('message_hub', 'resumed_keys', 'best_score'): 'true',
    ('message_hub', 'log_scalars', 'train/loss', '_log_history'): '',
    ('message_hub', 'log_scalars', 'train/loss', 'max_length'): '',
    ('message_hub', 'runtime_info', 'keep_ckpt_ids'): 'missing none list',
    ('message_hub', 'runtime_info', 'best_ckpt'): 'missing none text',
    ('message_hub', 'runtime_info', 'best_score'): 'missing negative huge',
    ('optimizer',): '',
    ('optimizer', 'state'): 'dict',
    ('optimizer', 'state', 0): 'missing dict',
    ('optimizer', 'state', 0, 'exp_avg'): '',
    ('optimizer', 'state', 0, 'step'): 'huge',
    ('optimizer', 'param_groups'): '',
    ('optimizer', 'param_groups', 0): '',
    ('optimizer', 'param_groups', 0, 'params'): '',
    ('optimizer', 'param_groups', 0, 'lr'): 'huge',
    ('optimizer', 'param_groups', 0, 'betas'): '',
    ('optimizer', 'param_groups', 0, 'amsgrad'): 'missing none true',
    ('param_schedulers',): '',
    ('param_schedulers', 0): '',
    ('param_schedulers', 1, 'power'): '',
    ('param_schedulers', 0, '_global_step'): '',
    ('param_schedulers', 1, 'last_step'): 'negative',
    ('param_schedulers', 1, '_last_value'): '',
    ('ema_state_dict',): 'missing',
    ('ema_state_dict', 'steps'): '',
    ('ema_state_dict', 'module.decode_head.cls_emb'): '',
}


@pytest.mark.parametrize('place', ADMITTED, ids=lambda place: '.'.join(map(str, place)))
def test_what_is_damaged_is_one_sentence(run, runner, place):
    for damage in ('missing', *DAMAGE):
        checkpoint = run.damaged(place, damage)
        if checkpoint is None:
            continue
        said = run.refusal(runner, checkpoint)
        if damage in ADMITTED[place].split():
            assert said is None, (damage, said)
        else:
            assert said is not None and "bad.pth'" in said and said.count('\n') == 0 and len(said) < 400, (damage, said)


def test_the_whole_checkpoint_is_resumed(run, runner):
    assert run.refusal(runner, copy.copy(run.checkpoint)) is None


def test_a_config_in_it_is_not_run(run, tmp_path):
    checkpoint = run.damaged(('meta', 'config'), 'none')
    checkpoint['meta']['config'] = f'open({str(tmp_path / "executed")!r}, "w")'  # mmengine runs what mmcv wrote there
    torch.save(checkpoint, tmp_path / 'evil.pth')
    run.runner(work_dir=str(tmp_path / 'work'), load_from=str(tmp_path / 'evil.pth'), resume=True).train()
    assert (tmp_path / 'work' / 'iter_4.pth').exists() and not (tmp_path / 'executed').exists()


@pytest.mark.slow
def test_any_damage_is_refused_or_does_not_stop_the_training(run, runner):
    damages = [(place, damage) for place in places(run.checkpoint) for damage in ('missing', *DAMAGE)]
    checkpoints = ((case, run.damaged(*case)) for case in damages)
    admitted = [
        case for case, checkpoint in checkpoints if checkpoint is not None and run.refusal(runner, checkpoint) is None
    ]
    assert 100 < len(admitted) < len(damages) / 2
    path = run.folder / 'admitted.pth'
    for case in admitted[:: len(admitted) // 8]:
        torch.save(run.damaged(*case), path)
        run.runner(work_dir=str(run.folder / 'resumed'), load_from=str(path), resume=True).train()
        assert read_checkpoint(run.folder / 'resumed' / 'iter_4.pth')['meta']['iter'] == 4, case
        shutil.rmtree(run.folder / 'resumed')


def deeper(runner):
    model = copy.deepcopy(runner.model)
    model.backbone.layers.append(copy.deepcopy(model.backbone.layers[1]))
    return model


def wider(runner):
    model = copy.deepcopy(runner.model)
    model.backbone.patch_embed = torch.nn.Linear(3, 3)
    return model


def poly(wrapper):
    return PolyLR(wrapper, power=0.5, begin=2, end=4, by_epoch=False)


@pytest.mark.parametrize(
    'part, make, words',
    [
        ('model', deeper, r'of another model than this config: 12 missing \(backbone\.layers\.2\.ln1'),
        ('model', wider, 'of another model than this config: 2 missing .*, 1 unexpected'),
        (
            'optim_wrapper',
            lambda runner: OptimWrapper(SGD(runner.model.parameters(), 1e-3, momentum=0.9)),
            r'its optimizer has nothing for the momentum of the SGD of this config, where 0\.9 is',
        ),
        (
            'optim_wrapper',
            lambda runner: OptimWrapper(AdamW([dict(params=[p]) for p in runner.model.parameters()])),
            r'its optimizer is of 1 groups of 50 parameters, and the AdamW of this config has 50 of 1, 1, 1, 1, \.\.\.',
        ),
        ('param_schedulers', lambda runner: runner.param_schedulers[:1], 'are 2, and the .* of this config are 1'),
        ('param_schedulers', lambda runner: runner.param_schedulers[::-1], r'_schedulers\[0\] is not of the PolyLR'),
        (
            'param_schedulers',
            lambda runner: [runner.param_schedulers[0], poly(runner.optim_wrapper)],
            r'has power=0\.9, and the PolyLR of this config 0\.5, .* no effect',
        ),
    ],
    ids=['deeper', 'wider', 'SGD', 'groups', 'fewer schedules', 'reversed', 'another power'],
)
def test_another_run_is_told_apart(run, runner, monkeypatch, part, make, words):
    monkeypatch.setattr(runner, part, make(runner))
    assert re.search(words, run.refusal(runner, copy.copy(run.checkpoint)))


def test_a_run_that_ends_before_or_with_other_settings_is_told(run, runner, monkeypatch):
    said = []
    monkeypatch.setattr(resume, 'print_log', lambda text, *args: said.append(text))
    monkeypatch.setattr(runner.train_loop, '_max_iters', 1)
    assert run.refusal(runner, copy.copy(run.checkpoint)).endswith('its meta.iter is 2, and this run ends at 1.')
    monkeypatch.setattr(runner.train_loop, '_max_iters', 4)
    for settings in (dict(initial_lr=0.1), dict(weight_decay=0.2)):
        monkeypatch.setattr(
            runner.optim_wrapper.optimizer,
            'param_groups',
            [{**group, **settings} for group in runner.optim_wrapper.optimizer.param_groups],
        )
    assert run.refusal(runner, copy.copy(run.checkpoint)) is None
    assert said == ["The optimizer goes on as in 'bad.pth': weight_decay 0.01 (config: 0.2), lr 0.001 (config: 0.1)."]


def test_what_is_not_saved_must_be_said_in_the_config(run, runner, monkeypatch):
    (best,) = run.folder.glob('work/best_mIoU_iter_2.pth')
    said = run.refusal(runner, read_checkpoint(best))
    assert 'it has no optimizer, as files of the best score have none' in said and 'load_from=' in said
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    monkeypatch.setattr(hook, 'save_optimizer', False)
    assert run.refusal(runner, run.damaged(('optimizer',), 'missing')) is None
