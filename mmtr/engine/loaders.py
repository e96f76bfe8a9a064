"""Loaders for mmengine's ``CheckpointLoader`` that read checkpoints as data only.

Importing this module registers them in place of mmengine's, some of which run any code in a pickle; see
``mmtr/weights/``.
"""

import os
import urllib.error
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import mmengine.runner.checkpoint as stock
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend

from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint


def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint from a local path; see :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint from ``http(s)://``; the file is downloaded once, into torch's hub folder.

    Raises:
        UserError: The download failed; or see :func:`read_checkpoint`.
    """
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    path = folder / os.path.basename(urlsplit(filename).path)
    rank, _ = get_dist_info()
    if rank == 0:
        _download(filename, path)
    barrier()
    # Other machines may have a folder of their own.
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


def load_from_zoo(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint by its name ``torchvision://``, ``open-mmlab://`` or ``mmcls://``, which stands for a URL.

    Raises:
        UserError: mmengine does not know the name; or see :func:`load_from_http`.
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


def load_from_storage(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint from ``s3://`` or ``petrel://`` through mmengine's file backend.

    Raises:
        UserError: The package of the backend is not installed; or see :func:`read_checkpoint`.
    """
    try:
        file = get_file_backend(filename, backend_args=dict(backend='petrel'))
    except ImportError as error:
        raise UserError(f"Checkpoint '{filename}' is out of reach: {error}.") from error
    with file.get_local_path(filename) as path:
        return read_checkpoint(path, map_location)


def refuse(filename: str, map_location: Any = None) -> NoReturn:
    """Raise a ``UserError`` for ``pavi://``, whose files mmengine would unpickle."""
    raise UserError(f"Checkpoint '{filename}' is not read from there; download it and name the file.")


stock.CheckpointLoader.register_scheme('', load_from_local, force=True)
stock.CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
stock.CheckpointLoader.register_scheme(
    ('torchvision://', 'modelzoo://', 'open-mmlab://', 'openmmlab://', 'mmcls://'), load_from_zoo, force=True
)
stock.CheckpointLoader.register_scheme((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_storage, force=True)
stock.CheckpointLoader.register_scheme('pavi://', refuse, force=True)
