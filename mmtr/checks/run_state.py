"""Check the training state in a checkpoint that a run resumes, as far as it does not depend on the run."""

import functools
import reprlib
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from mmtr.errors import UserError


def check_state(checkpoint: dict, path: str) -> None:
    """Check that the entries of a checkpoint are there and of the right types.

    Args:
        path: The file, for the error.

    Raises:
        UserError: The file holds no training state; or an entry is wrong: names it, its value, and what is right.
    """
    if 'iter' not in checkpoint.get('meta', {}) or 'message_hub' not in checkpoint or 'state_dict' not in checkpoint:
        raise UserError(f"'{path}' holds weights but no state of a training run to resume; {from_weights(path)}.")
    for place, (holds, right) in STATE.items():
        try:
            value = functools.reduce(lambda found, key: found[key], place.split('.'), checkpoint)
        except KeyError:
            value = None
        else:
            # Hooks test only that an entry is there, so None is wrong in it.
            holds = holds if value is not None or '.' in place else _is_there
        if not holds(value):
            refuse(path, f'its {place} is {shown(value)}, not {right}')
    hub = checkpoint['message_hub']
    for name, value in hub['log_scalars'].items():
        if isinstance(value, HistoryBuffer) and not _is_history(value):  # mmengine skips anything but a HistoryBuffer
            refuse(path, f'its log of {name} is damaged')
    for name, value in hub['runtime_info'].items():
        kind = next((kind for start, kind in INFO.items() if name.startswith(start)), None)
        if kind is not None and not kind[0](value):
            refuse(path, f'its message_hub.runtime_info.{name} is {shown(value)}, not {kind[1]}')
    for name, value in (checkpoint.get('ema_state_dict') or {}).items():
        if not isinstance(value, torch.Tensor):
            refuse(path, f'its ema_state_dict has {shown(value)} for {name}, not a tensor')
    for name in {*hub['log_scalars'], *hub['runtime_info']}:
        if hub['resumed_keys'].get(name) is not True:
            refuse(path, f'its message_hub.resumed_keys does not say that {name} is resumed')


def refuse(path: str, why: str) -> NoReturn:
    """Raise the ``UserError`` that a checkpoint cannot be resumed."""
    raise UserError(f"'{path}' cannot be resumed: {why}.")


def from_weights(path: str) -> str:
    """Tell, in half a sentence, how to start from the weights only."""
    return f"to start from the weights use --cfg-options load_from='{path}'"


def shown(value: Any) -> str:
    """Describe a value in a sentence; a tensor by its shape."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f'a {type(value).__name__} of shape {tuple(value.shape)}'
    return 'nothing' if value is None else reprlib.repr(value)


def is_count(value: Any) -> bool:
    """Whether a value is an int from 0 to 2^31 - 1."""
    return type(value) is int and 0 <= value < 2**31


def is_number(value: Any) -> bool:
    """Whether a value is one real number, also infinite, but not NaN."""
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
        and is_count(getattr(value, 'max_length', None))
        and '_statistics_methods' not in vars(value)
    )


#: Dotted key in a checkpoint -> (test of its value, the right value in words). None stands for an absent entry.
STATE = {
    'meta.iter': (is_count, 'a number of iterations'),
    'meta.epoch': (is_count, 'a number of epochs'),
    'meta.seed': (_optional(lambda seed: type(seed) is int and 0 <= seed < 2**32), 'a seed'),
    'message_hub': (_names, 'a dict of what was logged'),
    'message_hub.log_scalars': (_names, 'a dict of logs'),
    'message_hub.runtime_info': (_names, 'a dict of what the hooks remember'),
    'message_hub.resumed_keys': (_names, 'a dict by the same names'),
    'optimizer': (_optional(_names), 'the state of an optimizer'),
    'param_schedulers': (_optional(lambda value: isinstance(value, (list, dict))), 'a list of schedules'),
    'ema_state_dict': (_optional(_names), 'a dict of tensors'),
}

#: Prefix of a name in message_hub.runtime_info -> as in ``STATE``; the longer of two prefixes comes first.
INFO = {
    'keep_ckpt_ids': (
        _optional(lambda value: isinstance(value, list) and all(map(is_count, value))),
        'a list of iterations or epochs',
    ),
    'last_ckpt': (_optional(lambda value: isinstance(value, str)), 'a path'),
    'best_ckpt': (_optional(lambda value: isinstance(value, str)), 'a path'),
    'best_score': (is_number, 'a score'),
}
