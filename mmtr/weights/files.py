"""Reading checkpoints without running what is in them, and writing them.

What is read, and how, is in ``safe_load.py``.
"""

import functools
import json
import logging
import re
import reprlib
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmengine.logging import print_log

from mmtr.errors import UserError
from mmtr.files import remove_leftovers, written_whole

from .safe_load import load_data

#: Of files that ``write_checkpoint`` can write.
SUFFIXES = ('.pth', '.safetensors')
#: What is read from the ``meta`` of any checkpoint, where it is there; the second is of ``tuned.py``.
META = {
    'meta': dict,
    'meta.frozen_weights': dict,
    'meta.dataset_meta': dict,
    'meta.dataset_meta.classes': (list, tuple),
    'meta.CLASSES': (list, tuple),
}


def read_checkpoint(path, map_location=None):
    """The dict in a local checkpoint file (``torch.save`` or ``.safetensors``), read as data only.

    Says so, once, if weights in it are NaN or infinite.

    Raises:
        UserError: The file is not there, is corrupt, holds code, or holds no dict; or its ``state_dict`` is none of
            tensors by name, or its ``meta`` no dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"Checkpoint '{path}' is {'a folder, not a file' if path.is_dir() else 'not there'}.")
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path, map_location)
        checkpoint = load_data(path, map_location)
    except UnpicklingError as error:
        code = re.search(r'GLOBAL (\S+)', str(error)) or re.search(r'unrecognized function (.+)', str(error))
        if code is None:
            raise _corrupt(path, 'what it holds is not what torch.save writes') from error
        raise UserError(
            f"Checkpoint '{path}' is refused, nothing in it was run: it holds '{code[1]}', which is code, "
            'and only tensors and plain values are loaded.'
        ) from error
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _corrupt(path, str(error).split('. ')[0] or 'it ends too early') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"Checkpoint '{path}' holds a {type(checkpoint).__name__}, not a dict of weights.")
    check_checkpoint(checkpoint, path)
    return checkpoint


def check_checkpoint(checkpoint, path):
    """Check what every reader of a checkpoint takes for granted; see :func:`read_checkpoint`."""
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict):
        raise UserError(f"Checkpoint '{path}' has a state_dict that is a {type(weights).__name__}, not a dict.")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"Checkpoint '{path}' has weights by the name {reprlib.repr(name)}, which is no text.")
        # mmengine would leave a random weight in place of anything else. Other formats than ours are for converters.
        if weights is not checkpoint and not isinstance(value, torch.Tensor) and not name.endswith('_extra_state'):
            raise UserError(f"Checkpoint '{path}' has a {type(value).__name__} where the weight {name} should be.")
    if checkpoint.get('meta') is None:
        checkpoint.pop('meta', None)
    for place, kind in META.items():
        value = functools.reduce(lambda found, key: (found or {}).get(key), place.split('.'), checkpoint)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"Checkpoint '{path}' has a {place} that is a {type(value).__name__}.")
    # mmengine's resume would run it, to look for the number of GPUs that mmcv wrote there.
    checkpoint.get('meta', {}).pop('config', None)
    wrong = [name for name, value in weights.items() if isinstance(value, torch.Tensor) and not _is_finite(value)]
    if wrong:
        _warn(f"'{path}' holds NaN or infinite values in {len(wrong)} of {len(weights)} weights, such as {wrong[0]}.")


def _is_finite(tensor):
    if tensor.is_meta or not tensor.is_floating_point() or tensor.layout != torch.strided:
        return True
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    # One pass without a mask of the tensor's size: a sum keeps what is not finite; itself it may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


@functools.cache
def _warn(text):
    print_log(text, logger='current', level=logging.WARNING)


def _corrupt(path, why):
    size = path.stat().st_size
    return UserError(f"Checkpoint '{path}' ({size} bytes) cannot be read, it is corrupt or no checkpoint: {why}.")


def _read_safetensors(path, map_location):
    from safetensors.torch import load_file

    weights = load_file(path)
    if isinstance(map_location, (str, torch.device)):
        weights = {name: tensor.to(map_location) for name, tensor in weights.items()}
    return weights


def write_checkpoint(path, state_dict, meta):
    """Write weights and ``meta`` in the format that the suffix of ``path``, one of ``SUFFIXES``, names.

    An earlier file stays until the new one is whole. Raises ``UserError`` when it cannot be written.
    """
    try:
        remove_leftovers(path.parent, re.escape(path.name))
        with written_whole(path) as partial:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file

                save_file(state_dict, partial, metadata={'format': 'pt', 'meta': json.dumps(meta)})
            else:
                torch.save({'state_dict': state_dict, 'meta': meta}, partial)
    # torch and safetensors tell of a full disk by errors of their own.
    except Exception as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f"'{path}' cannot be written: {reason}.") from error
