"""Checkpoints of what was tuned beside hooks that keep weights of their own, whatever the order of the hooks."""

import copy

import pytest
import torch
from mmengine.hooks import EMAHook, Hook

from mmtr.registry import HOOKS
from mmtr.weights.files import read_checkpoint

from .tuned_runs import TUNED

KEEPER = dict(type='mmtr.Keeper')


@HOOKS.register_module()
class Keeper(Hook):
    """A mean of all weights since the start, as stochastic weight averaging has it, under names of its own."""

    def before_run(self, runner):
        self.mean, self.count = copy.deepcopy(runner.model.state_dict()), 0

    def after_train_iter(self, runner, **kwargs):
        self.count += 1
        for name, value in runner.model.state_dict().items():
            # The first mean is what there is, to the last bit.
            self.mean[name] = (
                value.clone() if self.count == 1 else (self.mean[name] + (value - self.mean[name]) / self.count)
            )

    def before_save_checkpoint(self, runner, checkpoint):
        assert checkpoint['state_dict'].keys() == self.mean.keys()
        checkpoint['mean'] = dict(count=self.count, **{f'mean.{name}': value for name, value in self.mean.items()})

    def after_load_checkpoint(self, runner, checkpoint):
        assert checkpoint['state_dict'].keys() == self.mean.keys()
        if 'mean' in checkpoint:
            kept = dict(checkpoint['mean'])
            self.count = kept.pop('count')
            self.mean = {name.removeprefix('mean.'): value for name, value in kept.items()}


def kept(runner):
    """What the hook of others in a runner keeps."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, (EMAHook, Keeper)))
    return hook.mean if isinstance(hook, Keeper) else hook.ema_model.module.state_dict()


def run(make_runner, cfg, **changes):
    runner = make_runner({**copy.deepcopy(cfg.to_dict()), **changes})
    runner.test() if 'train_cfg' in changes else runner.train()
    return runner


EMA = dict(type='EMAHook', momentum=0.3)
slow = pytest.mark.slow


@pytest.mark.parametrize(
    'first, hook',
    [
        (True, EMA),
        (False, dict(KEEPER, priority='LOWEST')),
        pytest.param(False, dict(EMA, priority='LOWEST'), marks=slow),
        pytest.param(True, dict(EMA, priority='HIGHEST', update_buffers=True), marks=slow),
        pytest.param(True, KEEPER, marks=slow),
        pytest.param(False, dict(KEEPER, priority='HIGHEST'), marks=slow),
    ],
    ids=lambda value: f'{value["type"]}-{value.get("priority")}' if isinstance(value, dict) else f'first={value}',
)
def test_what_is_tested_and_resumed_is_what_was_trained(tuned, make_runner, tmp_path, hook, first):
    ours = [
        dict(type='mmtr.PEFTCheckpointHook'),
        dict(type='mmtr.CheckpointCoverageHook'),
        dict(type='mmtr.IterationSeedHook'),
    ]
    tuned.custom_hooks = [hook, *ours] if first else [*ours, hook]
    tuned.randomness = dict(seed=0)
    tuned.optim_wrapper.optimizer.lr = 0.1
    tuned.val_cfg = tuned.val_dataloader = tuned.val_evaluator = None
    tuned.default_hooks.checkpoint.pop('save_best')
    for loader in (tuned.train_dataloader, tuned.test_dataloader):
        loader.dataset.serialize_data = False  # or it collects garbage, for a second
    trained = run(make_runner, tuned)
    file = read_checkpoint(tmp_path / 'work' / 'iter_4.pth')
    assert all(name.startswith(TUNED) for name in file['state_dict'])
    other = next(file[key] for key in ('ema_state_dict', 'mean') if key in file)
    assert other and all(
        name.startswith(tuple(f'{prefix}.{part}' for prefix in ('module', 'mean') for part in TUNED))
        for name in other
        if '.' in name
    )
    last = dict(load_from=str(tmp_path / 'work' / 'iter_4.pth'))
    tested = run(
        make_runner, tuned, **last, train_cfg=None, train_dataloader=None, optim_wrapper=None, param_scheduler=None
    )
    resumed = run(
        make_runner,
        tuned,
        load_from=str(tmp_path / 'work' / 'iter_2.pth'),
        resume=True,
        work_dir=str(tmp_path / 'resumed'),
    )
    ema, base = hook['type'] == 'EMAHook', read_checkpoint(tmp_path / 'base.pth')['state_dict']
    for name, value in trained.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
        frozen = base.get(name.removeprefix('backbone.'))
        assert torch.equal(tested.model.state_dict()[name], file['state_dict'].get(name, frozen)), name
        assert torch.equal(
            kept(tested)[name],
            file['state_dict'].get(name, frozen) if ema else file['mean'].get(f'mean.{name}', frozen),
        ), name
        # One that runs after CheckpointHook sees the last iteration when the checkpoint is written.
        if hook.get('priority') != 'LOWEST':
            assert torch.equal(kept(resumed)[name], kept(trained)[name]), name
