"""Read files of ``torch.save`` as data: tensors, plain values, and the few classes in mmengine's checkpoints.

From torch 2.6 on, ``torch.load(weights_only=True)`` does that. Before, it allowed only torch's own classes and ran
the code of TorchScript files (CVE-2025-32434), so ``unpickler.py`` reads the file, with the same list of classes.
"""

from pickle import UnpicklingError
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

TORCH_READS_DATA = torch.__version__ >= (2, 6)
_METHODS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _method(owner, name):
    # Replaces builtins.getattr, by which pickle finds methods: a hostile file could reach anything with it.
    if not isinstance(owner, type) or name not in _METHODS.get(owner, ()):
        raise UnpicklingError(f'GLOBAL builtins.getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def safe_globals() -> list:
    """List the functions and classes allowed beside tensors and plain values, some as (object, its name in a file)."""
    reconstruct, _ = np.zeros(1).__reduce__()[:2]
    scalar, _ = np.float64(0).__reduce__()
    # numpy 2 renamed the module of these two functions; each release must read files of the other.
    numpy = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [HistoryBuffer, OneCycleParamScheduler, (_method, 'builtins.getattr'), np.ndarray, np.dtype, *numpy, *dtypes]


def load_data(file: Union[str, BinaryIO], map_location: Any = None) -> Any:
    """Read what ``torch.save`` wrote to ``file``, a path or an open binary file, without running code in it.

    Args:
        map_location: As for ``torch.load``.

    Raises:
        UnpicklingError: The file holds code or is not of ``torch.save``. A damaged file can raise any exception.
    """
    if TORCH_READS_DATA:
        return torch.load(file, map_location=map_location, weights_only=True)
    from .unpickler import load

    return load(file, map_location)


if TORCH_READS_DATA:
    torch.serialization.add_safe_globals(safe_globals())
