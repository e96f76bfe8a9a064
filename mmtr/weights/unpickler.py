"""Read pickles as data only, in place of the module ``pickle``, for torch before 2.6: see ``safe_load.py``.

torch reads the file, and :class:`Unpickler` reads the pickles in it.
"""

import codecs
import pickle
import tarfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from types import SimpleNamespace
from typing import Any, BinaryIO, Union

import torch
from torch import _weights_only_unpickler, serialization

from .safe_load import safe_globals


def load(file: Union[str, BinaryIO], map_location: Any = None) -> Any:
    """Read what ``torch.save`` wrote to ``file``, a path or an open binary file; see ``safe_load.load_data``."""
    # This calls the parts of torch.load. torch.load itself runs the code of TorchScript files, and refuses another
    # unpickler if TORCH_FORCE_WEIGHTS_ONLY_LOAD is set.
    with serialization._open_file_like(file, 'rb') as opened:
        if serialization._is_zipfile(opened):
            with serialization._open_zipfile_reader(opened) as archive:
                if serialization._is_torchscript_zip(archive):
                    raise RuntimeError('It is a TorchScript archive, which is code')
                return serialization._load(_Archive(archive), map_location, _PICKLE, encoding='utf-8')
        if tarfile.is_tarfile(opened):
            raise RuntimeError('It is a .tar file')
        opened.seek(0)
        return serialization._legacy_load(opened, map_location, _PICKLE, encoding='utf-8')


class _Archive:
    # A check around torch's reader, which reads beyond the end of a record that is shorter than the pickle says.

    def __init__(self, reader):
        self._reader = reader

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def get_storage_from_record(self, name, size, storage_type):
        found = len(self._reader.get_record(name))
        if found != size:
            raise RuntimeError(f'Record {name} has {found} bytes and not {size}')
        return self._reader.get_storage_from_record(name, size, storage_type)


def _named(allowed):
    pairs = [
        (value if isinstance(value, tuple) else (value, f'{value.__module__}.{value.__qualname__}'))
        for value in allowed
    ]
    return {path: value for value, path in pairs}


# torch's list of allowed globals, with plain values added that the list of torch 2.1 lacks.
_GLOBALS = {
    **_weights_only_unpickler._get_allowed_globals(),
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    **_named([torch.device, Counter, set, bytearray, complex, (codecs.encode, '_codecs.encode'), *safe_globals()]),
}
# The opcodes that torch.save writes: values, containers, globals, calls of globals, storages.
_OPCODES = """
    PROTO STOP MARK GLOBAL REDUCE NEWOBJ BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET""".split()
# For each opcode that acts on an object: that object, what it may be, and the action in words. BUILD looks at the type
# of the object, so that no class can be filled: that would replace its methods.
_ACTS = {
    'REDUCE': (lambda self: self.stack[-2], _GLOBALS.values(), 'call reduce for unrecognized function'),
    'NEWOBJ': (lambda self: self.stack[-2], _GLOBALS.values(), 'make an object of'),
    'BUILD': (lambda self: type(self.stack[-2]), _GLOBALS.values(), 'fill an object of'),
    'APPEND': (lambda self: type(self.stack[-2]), (list,), 'append to an object of'),
    'APPENDS': (lambda self: type(self.metastack[-1][-1]), (list,), 'append to an object of'),
    'SETITEM': (lambda self: type(self.stack[-3]), (dict, OrderedDict, Counter), 'set items of an object of'),
    'SETITEMS': (lambda self: type(self.metastack[-1][-1]), (dict, OrderedDict, Counter), 'set items of an object of'),
}


def _opcode(name):
    code = getattr(pickle, name)[0]
    load = pickle._Unpickler.dispatch[code]
    if name not in _ACTS:
        return code, load
    target, admitted, doing = _ACTS[name]

    def checked(self):
        # By identity: an object from the file could define its own ==.
        found = target(self)
        if not any(found is value for value in admitted):
            raise pickle.UnpicklingError(f'Trying to {doing} {found}')
        load(self)

    return code, checked


class Unpickler(pickle._Unpickler):
    """Unpickler that reads data only: allowed globals, and the opcodes of ``torch.save`` on allowed objects.

    Raises:
        pickle.UnpicklingError: The pickle holds anything else.
    """

    dispatch = dict(map(_opcode, _OPCODES))

    def load(self) -> Any:
        """Read the object in the pickle."""
        try:
            return super().load()
        except KeyError as error:
            raise pickle.UnpicklingError(f'Unsupported operand {error}') from error

    def load_binpersid(self) -> None:
        """Read a storage; refuse the classes that files of torch before 1.6 may name there."""
        if self.stack[-1][0] not in ('storage', b'storage'):
            raise pickle.UnpicklingError(f'Unsupported persistent id {self.stack[-1]}')
        super().load_binpersid()

    dispatch[pickle.BINPERSID[0]] = load_binpersid

    def find_class(self, module: str, name: str) -> Any:
        """Look up an allowed global by module and name; nothing is imported."""
        if self.proto < 3:  # The names are those of Python 2.
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f'{module}.{name}'
        if path not in _GLOBALS:
            code = name if module == 'builtins' else path
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {code} was not an allowed global')
        return _GLOBALS[path]


# torch takes this in place of the module pickle.
_PICKLE = SimpleNamespace(Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load())
