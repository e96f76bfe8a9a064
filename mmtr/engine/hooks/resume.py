"""A hook that checks the checkpoint of a resumed training before any of it is used.

mmengine loads the parts that are there and skips the others: without the state of its optimizer a run goes on worse,
and with that of another optimizer it fails with a traceback, or goes on wrongly.
"""

import copy
import inspect
import logging
import math
from collections import defaultdict
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner, find_latest_checkpoint

from mmtr.checks.run_state import check_state, from_weights, is_count, is_number, refuse, shown
from mmtr.peft.freezing import frozen_state
from mmtr.registry import HOOKS
from mmtr.weights.fit import Fit, uncovered
from mmtr.weights.tuned import META, weights_in
from mmtr.words import some

from .coverage import unwrap


@HOOKS.register_module()
class ResumeCheckHook(Hook):
    """Checks the checkpoint that a training resumes, before any of it is used.

    Raises:
        UserError: See ``check_state`` and ``check_fits``.
    """

    priority = 'HIGHEST'  # before hooks that remove entries of the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the checkpoint, unless only its weights are loaded."""
        if runner._resume:
            path = runner._load_from or find_latest_checkpoint(runner.work_dir)
            check_state(checkpoint, path)
            check_fits(runner, checkpoint, path)


def check_fits(runner: Runner, checkpoint: dict, path: str) -> None:
    """Check a checkpoint that has passed :func:`check_state` against the run that resumes it.

    Warns where the optimizer's settings in the config differ from those in the checkpoint, which are used.

    Raises:
        UserError: The checkpoint is of another model, optimizer or schedule, or from beyond the end of this run.
    """
    meta, loop = checkpoint['meta'], runner.train_loop
    # By epoch if the loop counts epochs: their number of iterations changes with the number of GPUs.
    unit = 'epoch' if isinstance(loop, EpochBasedTrainLoop) else 'iter'
    last = getattr(loop, f'max_{unit}s')
    if meta[unit] > last:
        refuse(path, f'its meta.{unit} is {meta[unit]}, and this run ends at {last}')
    _check_weights(runner, checkpoint, path)
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for key, option in (('optimizer', 'save_optimizer'), ('param_schedulers', 'save_param_scheduler')):
        absent = key not in checkpoint and (key == 'optimizer' or runner.param_schedulers)
        if absent and all(getattr(hook, option) for hook in hooks):
            refuse(
                path,
                f'it has no {key}, as files of the best score have none; resume from one of those that are '
                f'written every interval, or {from_weights(path)}',
            )
        if absent:
            print_log(f"'{path}' has no {key}, as {option}=False says: that starts anew.", 'current', logging.WARNING)
    if 'optimizer' in checkpoint:
        wrapper, saved = runner.optim_wrapper, checkpoint['optimizer']
        for name, one in by_name(
            path, 'optimizer', dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else wrapper, saved
        ):
            _check_optimizer(one[0], one[1], name, path)
    if 'param_schedulers' in checkpoint:
        schedulers = runner.param_schedulers or []
        for name, (built, saved) in by_name(path, 'param_schedulers', schedulers, checkpoint['param_schedulers']):
            _check_schedulers(built, saved, name, path)


def _check_weights(runner, checkpoint, path):
    model = unwrap(runner.model)
    frozen = frozen_state(model) if META in checkpoint['meta'] else {}
    weights = {**frozen, **weights_in(checkpoint)}
    difference = uncovered(model, weights)
    if difference:
        refuse(path, f'it is of another model than this config: {difference}')
    average = checkpoint.get('ema_state_dict')
    if average is None or not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        return
    shadows = {name.removeprefix('module.'): value for name, value in average.items() if name.startswith('module.')}
    difference = Fit(model, {**frozen, **shadows}).difference()
    steps = average.get('steps')
    if difference or steps is None or not is_number(steps) or steps < 0:
        refuse(path, f'its ema_state_dict is damaged or of another model: {difference or "steps is no number"}')


def by_name(path: str, what: str, built: Any, saved: Any) -> list[tuple[str, tuple[Any, Any]]]:
    """Pair the optimizers or schedules of a run with the saved ones: [(name for messages, (built, saved))].

    Args:
        path: The checkpoint, for the error.
        what: Key in the checkpoint.
        built: What the run has: one, or several in a dict by name.
        saved: What the checkpoint has.

    Raises:
        UserError: The names differ.
    """
    if not isinstance(built, dict):
        return [(what, (built, saved))]
    if not isinstance(saved, dict) or built.keys() != saved.keys():
        refuse(path, f'its {what} is not by the names {", ".join(built)} of this run')
    return [(f'{what}.{name}', (built[name], saved[name])) for name in built]


def _check_optimizer(wrapper, saved, where, path):
    optimizer = wrapper.optimizer
    kind = type(optimizer).__name__
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get('param_groups'), list)
        or not isinstance(saved.get('state'), dict)
    ):
        refuse(path, f'its {where} is no state of an optimizer, a dict of param_groups and state')
    groups, parameters = saved['param_groups'], {}
    sizes = [len(group['params']) for group in optimizer.param_groups]
    found = [
        len(group['params']) if isinstance(group, dict) and isinstance(group.get('params'), list) else None
        for group in groups
    ]
    if found != sizes:
        refuse(
            path,
            f'its {where} is of {len(found)} groups of {_sizes(found)} parameters, and the {kind} of this '
            f'config has {len(sizes)} of {_sizes(sizes)}',
        )
    differing = {}
    pairs = [*zip(optimizer.param_groups, groups)]
    base = getattr(wrapper, 'base_param_settings', None)
    if base is not None and saved.get('base_param_settings') is not None:
        pairs.append((base, saved['base_param_settings']))
    for own, group in pairs:
        if not isinstance(group, dict):
            refuse(path, f'its {where}.base_param_settings is {shown(group)}, not a dict')
        for key, value in own.items():
            if key == 'params' or key not in group and not _matters(value):
                continue
            if key not in group or not _like(group[key], value):
                refuse(
                    path,
                    f'its {where} has {shown(group.get(key))} for the {key} of the {kind} of this config, '
                    f'where {shown(value)} is',
                )
            if _is_setting(key, own) and group[key] != value:
                differing.setdefault(key.removeprefix('initial_'), f'{group[key]} (config: {value})')
    for own, group in zip(optimizer.param_groups, groups):
        if not all(is_count(index) for index in group['params']):
            refuse(path, f'its {where} numbers the parameters by something else than numbers')
        parameters.update(zip(group['params'], own['params']))
    if not saved['state']:
        differing['state'] = 'from nothing'
    _check_moments(optimizer, saved['state'], parameters, where, path)
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is not None and 'loss_scaler' in saved and not _like(saved['loss_scaler'], scaler.state_dict()):
        refuse(path, f'its {where}.loss_scaler is not like that of this run, {shown(scaler.state_dict())}')
    if differing:
        print_log(
            f"The optimizer goes on as in '{path}': " + ', '.join(f'{k} {v}' for k, v in differing.items()) + '.',
            'current',
            logging.WARNING,
        )


def _check_moments(optimizer, state, parameters, where, path):
    first = next(iter(parameters.values()), None)
    expected = _one_step(optimizer, first) if first is not None else {}
    for index, values in state.items():
        if index not in parameters or not isinstance(values, dict):
            refuse(path, f'its {where}.state is of {shown(index)}, which is none of its parameters')
        shape = parameters[index].shape
        for key, like in expected.items() if values else ():
            value = values.get(key)
            if like == 'weight' and not (isinstance(value, torch.Tensor) and value.shape == shape):
                refuse(
                    path, f'its {where}.state[{index}].{key} is {shown(value)}, not a tensor of shape {tuple(shape)}'
                )
            if like == 'number' and not (is_number(value) and 0 <= value < math.inf):
                refuse(path, f'its {where}.state[{index}].{key} is {shown(value)}, not a number of steps')


def _one_step(optimizer, parameter):
    """State that an optimizer keeps of a parameter, {key: 'weight' or 'number'}, found by one step of a copy."""
    shape = (2, 3)
    trial = copy.copy(optimizer)
    dummy = torch.nn.Parameter(torch.zeros(shape, device=parameter.device))
    dummy.grad = torch.zeros_like(dummy)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.param_groups[0], 'params': [dummy]}]
    try:
        trial.step()
    except Exception:  # an optimizer that needs more than a gradient: its state is not checked
        return {}
    kinds = {
        key: 'weight' if getattr(value, 'shape', ()) == shape else 'number' if is_number(value) else None
        for key, value in trial.state[dummy].items()
    }
    return {key: kind for key, kind in kinds.items() if kind}


def _check_schedulers(built, saved, where, path):
    if not isinstance(saved, list) or len(saved) != len(built):
        refuse(
            path,
            f'its {where} are {len(saved) if isinstance(saved, list) else shown(saved)}, and the '
            f'param_scheduler of this config are {len(built)}',
        )
    for i, (scheduler, state) in enumerate(zip(built, saved)):
        own, kind = scheduler.state_dict(), type(scheduler).__name__
        if not isinstance(state, dict) or state.keys() != own.keys():
            refuse(path, f'its {where}[{i}] is not of the {kind} that this config has there')
        for key, value in own.items():
            if not _like(state[key], value):
                refuse(
                    path,
                    f'its {where}[{i}].{key} is {shown(state[key])}, where the {kind} of this config has '
                    f'{shown(value)}',
                )
            if key in _settings(type(scheduler)) and state[key] != value:
                refuse(
                    path,
                    f'its {where}[{i}] has {key}={shown(state[key])}, and the {kind} of this config '
                    f'{shown(value)}, which would have no effect; set param_scheduler as in training, or '
                    f'{from_weights(path)}',
                )
        step, last = state.get('_global_step'), state.get('last_step')
        if not is_count(step) or type(last) is not int or last > max(min(step, state['end'] - 1) - state['begin'], -1):
            refuse(path, f'its {where}[{i}] is at step {shown(last)} of {shown(step)}, which no {kind} is')


def _settings(kind):
    """Names of the arguments that a scheduler is built with; ``base_values`` is none, they are the optimizer's."""
    return {name for each in kind.__mro__[:-1] for name in inspect.signature(each.__init__).parameters} - {
        'self',
        'args',
        'kwargs',
        'optimizer',
        'last_step',
    }


def _is_setting(key, group):
    """Whether a key of an optimizer's group is constant in training; a schedule changes keys with an initial value."""
    moved = f'initial_{key}' in group or key == 'betas' and 'initial_momentum' in group
    return not moved and isinstance(group[key], (bool, int, float, tuple, str))


def _matters(value):
    """Whether an optimizer needs a setting; switches may be absent, as torch adds those that older versions lacked."""
    return value is not None and not isinstance(value, bool)


def _like(found, expected):
    """Whether a value is of the same kind as another: both numbers, or both lists of one length, and so on."""
    if isinstance(expected, bool) or expected is None:
        return found is None or isinstance(found, bool) or expected is None and is_number(found)
    if is_number(expected):
        return is_number(found) and (math.isinf(expected) or abs(found) < math.inf) and (found >= 0 or expected < 0)
    if isinstance(expected, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(expected) and all(map(_like, found, expected))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(_like(found[key], value) for key, value in expected.items())
        )
    if callable(expected):
        return callable(found)
    return isinstance(found, type(expected))


def _sizes(found):
    return some('no' if size is None else size for size in found)
