"""Steps of a long measurement, kept in a file so that an interrupted one goes on where it stopped."""

import hashlib
import io
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Optional

import torch

from mmtr.errors import UserError
from mmtr.weights.safe_load import load_data

from .speed import machine


def made_with(cfg, checkpoint: str, device: str, **more) -> dict:
    """What the results of a measurement depend on, by name, as JSON values.

    Args:
        cfg: mmengine ``Config``.
        checkpoint: A file.
        more: Anything else they depend on.
    """
    config = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    with open(checkpoint, 'rb') as file:
        weights = hashlib.sha256()
        while block := file.read(1 << 20):
            weights.update(block)
    found = dict(
        config=hashlib.sha256(config.encode()).hexdigest(),
        checkpoint=weights.hexdigest(),
        machine=machine(device),
        **more,
    )
    return json.loads(json.dumps(found, default=str))


def check_same(found: dict, wanted: dict, path) -> None:
    """Raise a ``UserError`` if the file at ``path``, made with ``found``, cannot go on with ``wanted``."""
    other = [name.replace('_', ' ') for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise UserError(
            f"'{path}' holds a run with another {', '.join(other)}: remove it to start anew, or give another --out."
        )


class Journal:
    """Records of steps, appended one at a time to an SQLite file; what is appended outlives the process.

    A context manager, which closes the file.

    Args:
        path: The file; None: keep them in memory.
        made: What the records depend on, see ``made_with``.

    Raises:
        UserError: The file was made with something else, is in use, or is no journal.
    """

    def __init__(self, path: Optional[str] = None, made: Optional[dict] = None):
        self.path = path
        try:
            self._file = sqlite3.connect(path or ':memory:', timeout=1, isolation_level=None)
            self._file.execute('PRAGMA locking_mode = EXCLUSIVE')
            self._file.execute('CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT)')
            self._file.execute('CREATE TABLE IF NOT EXISTS steps (step INTEGER PRIMARY KEY, record BLOB)')
            found = self.note('made with', lambda: made)
        except sqlite3.Error as error:
            raise UserError(
                f"'{path}' cannot be used to go on, another process uses it or it is no journal: {error}."
            ) from error
        check_same(found or {}, made or {}, path)

    def note(self, name: str, value):
        """What is noted under ``name``; first ``value()``, a JSON value, where nothing is."""
        found = self._file.execute('SELECT value FROM notes WHERE name = ?', (name,)).fetchone()
        if found is None:
            found = (json.dumps(value()),)
            self._file.execute('INSERT INTO notes VALUES (?, ?)', (name, *found))
        return json.loads(found[0])

    def append(self, record: dict) -> None:
        """Keep a record of plain values, tensors and arrays."""
        buffer = io.BytesIO()
        torch.save(record, buffer)
        packed = zlib.compress(buffer.getvalue(), 1)
        if len(self) == 0:
            self._unpack(packed)  # what cannot be read again must stop the first step, not the end
        self._file.execute('INSERT INTO steps VALUES (?, ?)', (len(self), packed))

    def __len__(self) -> int:
        return self._file.execute('SELECT COUNT(*) FROM steps').fetchone()[0]

    def __iter__(self) -> Iterator[dict]:
        for (packed,) in self._file.execute('SELECT record FROM steps ORDER BY step'):
            yield self._unpack(packed)

    def _unpack(self, packed):
        try:
            return load_data(io.BytesIO(zlib.decompress(packed)), map_location='cpu')
        except UnpicklingError as error:
            raise UserError(
                f"'{self.path}' can keep tensors, arrays and plain values alone, and a metric of the "
                f"config's test_evaluator gives more: {str(error).splitlines()[0]}"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def remove(self) -> None:
        """Forget everything, the file included."""
        self._file.close()
        if self.path and Path(self.path).exists():
            os.remove(self.path)
