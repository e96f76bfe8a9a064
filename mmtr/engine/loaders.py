"""The loaders of mmengine's ``CheckpointLoader``: ours read data alone. Importing this module puts them in force.

They take the place of mmengine's, some of which unpickle anything; see ``mmtr/weights/``.
"""

import os
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import mmengine.runner.checkpoint as stock
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend

from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint


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
