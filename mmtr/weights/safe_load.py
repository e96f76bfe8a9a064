"""Reading what ``torch.save`` wrote as data: tensors, plain values, and the few classes in mmengine's checkpoints.

Since torch 2.6, ``torch.load(weights_only=True)`` is all that it takes. Before, that knew no class but torch's own and
ran the code of TorchScript files (CVE-2025-32434); there ``unpickler.py`` reads, by the same list.
"""

from pickle import UnpicklingError

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
    # Stands in for builtins.getattr, by which pickle finds methods and a hostile file finds anything.
    if not isinstance(owner, type) or name not in _METHODS.get(owner, ()):
        raise UnpicklingError(f'GLOBAL builtins.getattr({owner!r}, {name!r})')
    return getattr(owner, name)


def safe_globals():
    """Functions and classes admitted beside tensors and plain values; or pairs of one and its name in a file."""
    reconstruct, _ = np.zeros(1).__reduce__()[:2]
    scalar, _ = np.float64(0).__reduce__()
    # numpy 2 renamed the module of these two; each release must read what the other wrote.
    numpy = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (reconstruct, scalar)
        for core in ('core', '_core')
    ]
    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefd'}
    return [HistoryBuffer, OneCycleParamScheduler, (_method, 'builtins.getattr'), np.ndarray, np.dtype, *numpy, *dtypes]


def load_data(file, map_location=None):
    """What ``torch.save`` wrote to ``file``, a path or an open binary file, without running anything in it.

    Raises:
        UnpicklingError: It holds code, or is no such file; a damaged one can raise anything.
    """
    if TORCH_READS_DATA:
        return torch.load(file, map_location=map_location, weights_only=True)
    from .unpickler import load

    return load(file, map_location)


if TORCH_READS_DATA:
    torch.serialization.add_safe_globals(safe_globals())
