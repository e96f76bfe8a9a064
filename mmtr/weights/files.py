"""Read checkpoints without running code in them, check them, and write them.

``safe_load.py`` lists the classes that a checkpoint may hold.
"""

import functools
import json
import logging
import re
import reprlib
import shlex
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Union
from zipfile import is_zipfile

import torch
from mmengine.logging import print_log

from mmtr.errors import UserError
from mmtr.files import remove_leftovers, written_whole

from .plain_pickle import load_pickle
from .safe_load import load_data

#: Suffixes of the files that ``write_checkpoint`` can write.
SUFFIXES = ('.pth', '.safetensors')
#: Entries of a checkpoint's ``meta`` that are read if present, and their types; ``tuned.py`` wrote ``frozen_weights``.
META = {
    'meta': dict,
    'meta.frozen_weights': dict,
    'meta.dataset_meta': dict,
    'meta.dataset_meta.classes': (list, tuple),
    'meta.CLASSES': (list, tuple),
}


def read_checkpoint(path: Union[str, Path], map_location: Any = None) -> dict:
    """Read the dict in a local checkpoint file (``torch.save``, ``.safetensors``, or a plain ``.pkl``) as data only.

    Warns, once a file, if weights are NaN or infinite.

    Args:
        map_location: As for ``torch.load``.

    Raises:
        UserError: The file is not there, is corrupt, holds code, or holds no dict; its ``state_dict`` is no dict of
            tensors by name; or its ``meta`` is no dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"Checkpoint '{path}' is {'a folder, not a file' if path.is_dir() else 'not there'}.")
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path, map_location)
        plain = path.suffix == '.pkl' and not is_zipfile(path)
        checkpoint = load_pickle(path) if plain else load_data(path, map_location)
    except UnpicklingError as error:
        code = re.search(r'GLOBAL (\S+)', str(error)) or re.search(r'unrecognized function (.+)', str(error))
        if code is None:
            raise _corrupt(path, 'what it holds is not what torch.save writes') from error
        raise UserError(
            f"Checkpoint '{path}' is refused, nothing in it was run: it holds '{code[1]}', which is code, "
            f'and only tensors and plain values are loaded{_remedy(path, code[1])}.'
        ) from error
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler
        raise _corrupt(path, str(error).split('. ')[0] or 'it ends too early') from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"Checkpoint '{path}' holds a {type(checkpoint).__name__}, not a dict of weights.")
    check_checkpoint(checkpoint, path)
    return checkpoint


def _remedy(path, code):
    """How to leave out the arguments that training scripts store beside the weights, or any other code."""
    if code != 'argparse.Namespace':
        return '; if you trust it, save its weights alone, with the program that wrote it'
    names = [json.dumps(str(each)) for each in (path, path.with_name(f'{path.stem}_without_args{path.suffix}'))]
    script = 'import torch; c = torch.load({}, "cpu", weights_only=False); del c["args"]; torch.save(c, {})'
    return (
        '; if you trust it, leave out the arguments of its training script by '
        f'`python -c {shlex.quote(script.format(*names))}`'
    )


def check_checkpoint(checkpoint: dict, path: Union[str, Path]) -> None:
    """Check the types of a checkpoint's weights and ``meta``, and drop the ``meta`` that mmengine would run.

    Raises:
        UserError: See :func:`read_checkpoint`.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict):
        raise UserError(f"Checkpoint '{path}' has a state_dict that is a {type(weights).__name__}, not a dict.")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"Checkpoint '{path}' has weights by the name {reprlib.repr(name)}, which is no text.")
        # mmengine would skip anything but a tensor, and the weight would stay random. A file without state_dict may be
        # in another layout, for a converter.
        if weights is not checkpoint and not isinstance(value, torch.Tensor) and not name.endswith('_extra_state'):
            raise UserError(f"Checkpoint '{path}' has a {type(value).__name__} where the weight {name} should be.")
    if checkpoint.get('meta') is None:
        checkpoint.pop('meta', None)
    for place, kind in META.items():
        value = functools.reduce(lambda found, key: (found or {}).get(key), place.split('.'), checkpoint)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"Checkpoint '{path}' has a {place} that is a {type(value).__name__}.")
    # mmengine's resume would run this text of a config, to read the number of GPUs from it.
    checkpoint.get('meta', {}).pop('config', None)
    wrong = [name for name, value in weights.items() if isinstance(value, torch.Tensor) and not _is_finite(value)]
    if wrong:
        _warn(f"'{path}' holds NaN or infinite values in {len(wrong)} of {len(weights)} weights, such as {wrong[0]}.")


def _is_finite(tensor):
    if tensor.is_meta or not tensor.is_floating_point() or tensor.layout != torch.strided:
        return True
    tensor = tensor if tensor.dtype == torch.float64 else tensor.float()
    # A sum needs no mask of the tensor's size, and keeps NaN and infinity. It may overflow: then all values are tested.
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


def write_checkpoint(path: Path, state_dict: dict[str, torch.Tensor], meta: dict) -> None:
    """Write weights and ``meta`` atomically, in the format of the suffix of ``path``, one of ``SUFFIXES``.

    Raises:
        UserError: The file cannot be written. An earlier file of that name is kept.
    """
    try:
        remove_leftovers(path.parent, re.escape(path.name))
        with written_whole(path) as partial:
            if path.suffix == '.safetensors':
                from safetensors.torch import save_file

                save_file(state_dict, partial, metadata={'format': 'pt', 'meta': json.dumps(meta)})
            else:
                torch.save({'state_dict': state_dict, 'meta': meta}, partial)
    # torch and safetensors raise errors of their own for a full disk.
    except Exception as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f"'{path}' cannot be written: {reason}.") from error
