"""Read files of ``pickle.dump`` as data only: plain values and arrays of numpy, such as detectron2's releases."""

import pickle
from pathlib import Path
from typing import Any

from .unpickler import Unpickler

# Of the protocols after the one that torch.save writes: values, memo, and globals, which find_class admits or not.
_OPCODES = """
    FRAME MEMOIZE SHORT_BINUNICODE BINUNICODE8 BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 STACK_GLOBAL
    """.split()


class _PlainUnpickler(Unpickler):
    dispatch = {
        **Unpickler.dispatch,
        **{code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)},
    }


def load_pickle(path: Path) -> Any:
    """Read the object in a file of ``pickle.dump``; the strings of Python 2 are read as Latin-1, as numpy needs it.

    Raises:
        UnpicklingError: The file holds code. A damaged file can raise any exception.
    """
    with path.open('rb') as file:
        return _PlainUnpickler(file, encoding='latin1').load()
