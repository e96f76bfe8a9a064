"""Reading checkpoints without running what is in them. Importing this module puts it in force.

The loaders below take the place of mmengine's, some of which unpickle anything; what is read, and how, is in
``mmtr/engine/safe_load.py``.
"""

import functools
import json
import logging
import os
import re
import reprlib
import urllib.error
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from urllib.parse import urlsplit

import mmengine.runner.checkpoint as stock
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log

from .safe_load import load_data
from mmtr.errors import UserError

#: Of files that ``write_checkpoint`` can write.
SUFFIXES = ('.pth', '.safetensors')
#: What is read from the ``meta`` of any checkpoint, where it is there; the second is of ``mmtr/peft/checkpoint.py``.
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


@contextmanager
def written_whole(path):
    """Context that yields another path in the same folder; what is written there replaces ``path`` at the end.

    An error, or Ctrl-C, leaves nothing behind; a process that is killed does: see :func:`remove_leftovers`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    # On the same disk: only then is the replacement one step.
    partial = os.path.join(folder, f'.{name}.{os.getpid()}.part')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def remove_leftovers(folder, name=r'.+\.pth|last_checkpoint'):
    """Remove from ``folder`` what killed processes had begun to write, of files whose name is the pattern ``name``."""
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        found = re.fullmatch(rf'\.(?:{name})\.(\d+)\.part', entry)
        if found and not _is_alive(int(found[1])):
            with suppress(OSError):
                os.remove(os.path.join(folder, entry))


def _is_alive(process):
    if process == os.getpid():
        return False  # in containers it is often that of the one before, and this one is not writing
    if os.name == 'nt':
        return True  # there, os.kill would end it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def load_from_local(filename, map_location=None):
    """Loader of mmengine's ``CheckpointLoader`` for local paths; see :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location)


def load_from_http(filename, map_location=None):
    """Loader for ``http(s)://``: downloads once into torch's hub folder, then reads as a local file.

    Raises:
        UserError: The download failed, or see :func:`read_checkpoint`.
    """
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    path = folder / os.path.basename(urlsplit(filename).path)
    rank, _ = get_dist_info()
    if rank == 0:
        _download(filename, path)
    barrier()
    # Other machines may not share rank 0's folder.
    _download(filename, path)
    return read_checkpoint(path, map_location)


def _download(url, path):
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"Checkpoint '{url}' could not be downloaded: {error}.") from error


def load_from_zoo(filename, map_location=None):
    """Loader for the names ``torchvision://``, ``open-mmlab://`` and ``mmcls://``, which stand for an ``http(s)://``.

    Raises:
        UserError: The name stands for nothing, or see :func:`load_from_http`.
    """
    scheme, name = filename.split('://', 1)
    name = stock.get_deprecated_model_names().get(name, name)
    urls = {
        'torchvision': stock.get_torchvision_models,
        'modelzoo': stock.get_torchvision_models,
        'mmcls': stock.get_mmcls_models,
    }.get(scheme, stock.get_external_models)()
    if name not in urls:
        raise UserError(f"'{filename}' is no checkpoint that mmengine knows.")
    checkpoint = stock.CheckpointLoader.load_checkpoint(urls[name], map_location)
    return stock._process_mmcls_checkpoint(checkpoint) if scheme == 'mmcls' else checkpoint


def load_from_storage(filename, map_location=None):
    """Loader for ``s3://`` and ``petrel://``, by mmengine's file backend; see :func:`read_checkpoint`.

    Raises:
        UserError: The backend's package is not installed, or see :func:`read_checkpoint`.
    """
    try:
        file = get_file_backend(filename, backend_args=dict(backend='petrel'))
    except ImportError as error:
        raise UserError(f"Checkpoint '{filename}' is out of reach: {error}.") from error
    with file.get_local_path(filename) as path:
        return read_checkpoint(path, map_location)


def refuse(filename, map_location=None):
    """Loader for ``pavi://``, which mmengine would unpickle. Raises ``UserError``."""
    raise UserError(f"Checkpoint '{filename}' is not read from there; download it and name the file.")


stock.CheckpointLoader.register_scheme('', load_from_local, force=True)
stock.CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
stock.CheckpointLoader.register_scheme(
    ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'), load_from_zoo, force=True
)
stock.CheckpointLoader.register_scheme((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_storage, force=True)
stock.CheckpointLoader.register_scheme('pavi://', refuse, force=True)
