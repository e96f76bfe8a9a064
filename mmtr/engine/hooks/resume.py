"""What a checkpoint must hold for a training run to go on from it, checked whole before any of it is used.

mmengine takes what is there and leaves the rest as it is: a run without the state of its optimizer goes on worse, and
one with that of another ends in a traceback, or does not end.
"""

import copy
import functools
import inspect
import logging
import math
import reprlib
from collections import defaultdict
from numbers import Real

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, find_latest_checkpoint

from mmtr.errors import UserError
from mmtr.peft.freezing import frozen_state
from mmtr.registry import HOOKS
from mmtr.weights.fit import Fit, uncovered
from mmtr.weights.tuned import META, weights_in
from mmtr.words import some

from .coverage import unwrap


@HOOKS.register_module()
class ResumeCheckHook(Hook):
    """Checks the whole checkpoint that a training resumes, before any of it is used.

    Raises:
        UserError: See ``check_state`` and ``check_fits``.
    """

    priority = 'HIGHEST'  # before the hooks that take something out of it

    def after_load_checkpoint(self, runner, checkpoint):
        """Check, unless only weights are loaded."""
        if runner._resume:
            path = runner._load_from or find_latest_checkpoint(runner.work_dir)
            check_state(checkpoint, path)
            check_fits(runner, checkpoint, path)


def check_state(checkpoint: dict, path: str) -> None:
    """Check all that can be checked without the run: what is there, and of which kind.

    Raises:
        UserError: Names the place, what is there, and what should be; or that the file is of no training run.
    """
    if 'iter' not in checkpoint.get('meta', {}) or 'message_hub' not in checkpoint or 'state_dict' not in checkpoint:
        raise UserError(f"'{path}' holds weights but no state of a training run to resume; {_from_weights(path)}.")
    for place, (holds, right) in STATE.items():
        try:
            value = functools.reduce(lambda found, key: found[key], place.split('.'), checkpoint)
        except KeyError:
            value = None
        else:
            # Hooks ask whether a part is there, not whether it is None.
            holds = holds if value is not None or '.' in place else _is_there
        if not holds(value):
            _refuse(path, f'its {place} is {_shown(value)}, not {right}')
    hub = checkpoint['message_hub']
    for name, value in hub['log_scalars'].items():
        if isinstance(value, HistoryBuffer) and not _is_history(value):  # mmengine passes over what is none
            _refuse(path, f'its log of {name} is damaged')
    for name, value in hub['runtime_info'].items():
        kind = next((kind for start, kind in INFO.items() if name.startswith(start)), None)
        if kind is not None and not kind[0](value):
            _refuse(path, f'its message_hub.runtime_info.{name} is {_shown(value)}, not {kind[1]}')
    for name, value in (checkpoint.get('ema_state_dict') or {}).items():
        if not isinstance(value, torch.Tensor):
            _refuse(path, f'its ema_state_dict has {_shown(value)} for {name}, not a tensor')
    for name in {*hub['log_scalars'], *hub['runtime_info']}:
        if hub['resumed_keys'].get(name) is not True:
            _refuse(path, f'its message_hub.resumed_keys does not say that {name} is resumed')


def check_fits(runner, checkpoint: dict, path: str) -> None:
    """Check what has passed :func:`check_state` against the run that is to go on from it.

    Warns where the config sets an optimizer otherwise than the checkpoint, from which it is taken.

    Raises:
        UserError: It is of another model, optimizer or schedule, or from beyond the end of this run.
    """
    meta, loop = checkpoint['meta'], runner.train_loop
    # The iterations of an epoch may change with the number of GPUs.
    unit = 'epoch' if isinstance(loop, EpochBasedTrainLoop) else 'iter'
    last = getattr(loop, f'max_{unit}s')
    if meta[unit] > last:
        _refuse(path, f'its meta.{unit} is {meta[unit]}, and this run ends at {last}')
    _check_weights(runner, checkpoint, path)
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    for key, option in (('optimizer', 'save_optimizer'), ('param_schedulers', 'save_param_scheduler')):
        absent = key not in checkpoint and (key == 'optimizer' or runner.param_schedulers)
        if absent and all(getattr(hook, option) for hook in hooks):
            _refuse(
                path,
                f'it has no {key}, as files of the best score have none; resume from one of those that are '
                f'written every interval, or {_from_weights(path)}',
            )
        if absent:
            print_log(f"'{path}' has no {key}, as {option}=False says: that starts anew.", 'current', logging.WARNING)
    if 'optimizer' in checkpoint:
        wrapper, saved = runner.optim_wrapper, checkpoint['optimizer']
        for name, one in _by_name(
            path, 'optimizer', dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else wrapper, saved
        ):
            _check_optimizer(one[0], one[1], name, path)
    if 'param_schedulers' in checkpoint:
        schedulers = runner.param_schedulers or []
        for name, (built, saved) in _by_name(path, 'param_schedulers', schedulers, checkpoint['param_schedulers']):
            _check_schedulers(built, saved, name, path)


def _refuse(path, why):
    raise UserError(f"'{path}' cannot be resumed: {why}.")


def _from_weights(path):
    return f"to start from the weights use --cfg-options load_from='{path}'"


def _shown(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f'a {type(value).__name__} of shape {tuple(value.shape)}'
    return 'nothing' if value is None else reprlib.repr(value)


def _is_count(value):
    return type(value) is int and 0 <= value < 2**31


def _is_number(value):
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = 0 if value.is_meta else value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and value == value  # what NaN is not


def _names(value):
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _is_there(value):
    return value is not None


def _optional(kind):
    return lambda value: value is None or kind(value)


def _is_history(value):
    arrays = [getattr(value, name, None) for name in ('_log_history', '_count_history')]
    return (
        all(isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in 'iuf' for array in arrays)
        and len(arrays[0]) == len(arrays[1])
        and _is_count(getattr(value, 'max_length', None))
        and '_statistics_methods' not in vars(value)
    )


#: Place in a checkpoint: what is right there, and that in words. What may be absent admits None.
STATE = {
    'meta.iter': (_is_count, 'a number of iterations'),
    'meta.epoch': (_is_count, 'a number of epochs'),
    'meta.seed': (_optional(lambda seed: type(seed) is int and 0 <= seed < 2**32), 'a seed'),
    'message_hub': (_names, 'a dict of what was logged'),
    'message_hub.log_scalars': (_names, 'a dict of logs'),
    'message_hub.runtime_info': (_names, 'a dict of what the hooks remember'),
    'message_hub.resumed_keys': (_names, 'a dict by the same names'),
    'optimizer': (_optional(_names), 'the state of an optimizer'),
    'param_schedulers': (_optional(lambda value: isinstance(value, (list, dict))), 'a list of schedules'),
    'ema_state_dict': (_optional(_names), 'a dict of tensors'),
}
#: How a name in message_hub.runtime_info begins: the same. Longer ones first.
INFO = {
    'keep_ckpt_ids': (
        _optional(lambda value: isinstance(value, list) and all(map(_is_count, value))),
        'a list of iterations or epochs',
    ),
    'last_ckpt': (_optional(lambda value: isinstance(value, str)), 'a path'),
    'best_ckpt': (_optional(lambda value: isinstance(value, str)), 'a path'),
    'best_score': (_is_number, 'a score'),
}


def _check_weights(runner, checkpoint, path):
    model = unwrap(runner.model)
    frozen = frozen_state(model) if META in checkpoint['meta'] else {}
    weights = {**frozen, **weights_in(checkpoint)}
    difference = uncovered(model, weights)
    if difference:
        _refuse(path, f'it is of another model than this config: {difference}')
    average = checkpoint.get('ema_state_dict')
    if average is None or not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        return
    shadows = {name.removeprefix('module.'): value for name, value in average.items() if name.startswith('module.')}
    difference = Fit(model, {**frozen, **shadows}).difference()
    steps = average.get('steps')
    if difference or steps is None or not _is_number(steps) or steps < 0:
        _refuse(path, f'its ema_state_dict is damaged or of another model: {difference or "steps is no number"}')


def _by_name(path, what, built, saved):
    """[(name for messages, (what the run has, what is saved))]; a run has several by name, or one."""
    if not isinstance(built, dict):
        return [(what, (built, saved))]
    if not isinstance(saved, dict) or built.keys() != saved.keys():
        _refuse(path, f'its {what} is not by the names {", ".join(built)} of this run')
    return [(f'{what}.{name}', (built[name], saved[name])) for name in built]


def _check_optimizer(wrapper, saved, where, path):
    optimizer = wrapper.optimizer
    kind = type(optimizer).__name__
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get('param_groups'), list)
        or not isinstance(saved.get('state'), dict)
    ):
        _refuse(path, f'its {where} is no state of an optimizer, a dict of param_groups and state')
    groups, parameters = saved['param_groups'], {}
    sizes = [len(group['params']) for group in optimizer.param_groups]
    found = [
        len(group['params']) if isinstance(group, dict) and isinstance(group.get('params'), list) else None
        for group in groups
    ]
    if found != sizes:
        _refuse(
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
            _refuse(path, f'its {where}.base_param_settings is {_shown(group)}, not a dict')
        for key, value in own.items():
            if key == 'params' or key not in group and not _matters(value):
                continue
            if key not in group or not _like(group[key], value):
                _refuse(
                    path,
                    f'its {where} has {_shown(group.get(key))} for the {key} of the {kind} of this config, '
                    f'where {_shown(value)} is',
                )
            if _is_setting(key, own) and group[key] != value:
                differing.setdefault(key.removeprefix('initial_'), f'{group[key]} (config: {value})')
    for own, group in zip(optimizer.param_groups, groups):
        if not all(_is_count(index) for index in group['params']):
            _refuse(path, f'its {where} numbers the parameters by something else than numbers')
        parameters.update(zip(group['params'], own['params']))
    if not saved['state']:
        differing['state'] = 'from nothing'
    _check_moments(optimizer, saved['state'], parameters, where, path)
    scaler = getattr(wrapper, 'loss_scaler', None)
    if scaler is not None and 'loss_scaler' in saved and not _like(saved['loss_scaler'], scaler.state_dict()):
        _refuse(path, f'its {where}.loss_scaler is not like that of this run, {_shown(scaler.state_dict())}')
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
            _refuse(path, f'its {where}.state is of {_shown(index)}, which is none of its parameters')
        shape = parameters[index].shape
        for key, like in expected.items() if values else ():
            value = values.get(key)
            if like == 'weight' and not (isinstance(value, torch.Tensor) and value.shape == shape):
                _refuse(
                    path, f'its {where}.state[{index}].{key} is {_shown(value)}, not a tensor of shape {tuple(shape)}'
                )
            if like == 'number' and not (_is_number(value) and 0 <= value < math.inf):
                _refuse(path, f'its {where}.state[{index}].{key} is {_shown(value)}, not a number of steps')


def _one_step(optimizer, parameter):
    """{key: 'weight' or 'number'} of what an optimizer keeps of a parameter, found by a step of a copy of it."""
    shape = (2, 3)
    trial = copy.copy(optimizer)
    dummy = torch.nn.Parameter(torch.zeros(shape, device=parameter.device))
    dummy.grad = torch.zeros_like(dummy)
    trial.state = defaultdict(dict)
    trial.param_groups = [{**optimizer.param_groups[0], 'params': [dummy]}]
    try:
        trial.step()
    except Exception:  # it needs more than a gradient: then its state goes unchecked
        return {}
    kinds = {
        key: 'weight' if getattr(value, 'shape', ()) == shape else 'number' if _is_number(value) else None
        for key, value in trial.state[dummy].items()
    }
    return {key: kind for key, kind in kinds.items() if kind}


def _check_schedulers(built, saved, where, path):
    if not isinstance(saved, list) or len(saved) != len(built):
        _refuse(
            path,
            f'its {where} are {len(saved) if isinstance(saved, list) else _shown(saved)}, and the '
            f'param_scheduler of this config are {len(built)}',
        )
    for i, (scheduler, state) in enumerate(zip(built, saved)):
        own, kind = scheduler.state_dict(), type(scheduler).__name__
        if not isinstance(state, dict) or state.keys() != own.keys():
            _refuse(path, f'its {where}[{i}] is not of the {kind} that this config has there')
        for key, value in own.items():
            if not _like(state[key], value):
                _refuse(
                    path,
                    f'its {where}[{i}].{key} is {_shown(state[key])}, where the {kind} of this config has '
                    f'{_shown(value)}',
                )
            if key in _settings(type(scheduler)) and state[key] != value:
                _refuse(
                    path,
                    f'its {where}[{i}] has {key}={_shown(state[key])}, and the {kind} of this config '
                    f'{_shown(value)}, which would have no effect; set param_scheduler as in training, or '
                    f'{_from_weights(path)}',
                )
        step, last = state.get('_global_step'), state.get('last_step')
        if not _is_count(step) or type(last) is not int or last > max(min(step, state['end'] - 1) - state['begin'], -1):
            _refuse(path, f'its {where}[{i}] is at step {_shown(last)} of {_shown(step)}, which no {kind} is')


def _settings(kind):
    """Names of what a scheduler is built with; ``base_values`` are the optimizer's."""
    return {name for each in kind.__mro__[:-1] for name in inspect.signature(each.__init__).parameters} - {
        'self',
        'args',
        'kwargs',
        'optimizer',
        'last_step',
    }


def _is_setting(key, group):
    """Whether a key of an optimizer's group stays through training: a schedule moves what has an initial value."""
    moved = f'initial_{key}' in group or key == 'betas' and 'initial_momentum' in group
    return not moved and isinstance(group[key], (bool, int, float, tuple, str))


def _matters(value):
    """Whether an optimizer cannot do without a setting; torch fills in switches that an older one had not."""
    return value is not None and not isinstance(value, bool)


def _like(found, expected):
    """Whether a value is of the kind of another: a number for a number, a list as long for a list."""
    if isinstance(expected, bool) or expected is None:
        return found is None or isinstance(found, bool) or expected is None and _is_number(found)
    if _is_number(expected):
        return _is_number(found) and (math.isinf(expected) or abs(found) < math.inf) and (found >= 0 or expected < 0)
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
