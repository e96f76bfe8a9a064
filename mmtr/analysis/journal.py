"""Store the steps of a long measurement in a file, so that an interrupted one goes on where it stopped."""

import hashlib
import io
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Callable, Optional

import torch
from mmengine.config import Config

from mmtr.errors import UserError
from mmtr.weights.safe_load import load_data

from .speed import machine


def made_with(cfg: Config, checkpoint: str, device: str, **more: Any) -> dict:
    """Collect what the results of a measurement depend on, by name, as JSON values.

    Args:
        cfg: Config of the model.
        checkpoint: File of the weights.
        device: Device of the model.
        more: Anything else that the results depend on.
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


def check_same(found: dict, wanted: dict, path: Optional[str]) -> None:
    """Raise a ``UserError`` if the file ``path``, made with ``found``, cannot go on with ``wanted`` (``made_with``)."""
    other = [name.replace('_', ' ') for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise UserError(
            f"'{path}' holds a run with another {', '.join(other)}: remove it to start anew, or give another --out."
        )


class Journal:
    """Records of steps in an SQLite file: each is on the disk once it is appended. As a context it closes the file.

    Args:
        path: The file; None: keep the records in memory.
        made: What the records depend on, see ``made_with``.

    Raises:
        UserError: The file was made with other settings, is in use, or is no journal.
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

    def note(self, name: str, value: Callable[[], Any]) -> Any:
        """Return the note ``name``; if there is none, store ``value()``, a JSON value, first."""
        found = self._file.execute('SELECT value FROM notes WHERE name = ?', (name,)).fetchone()
        if found is None:
            found = (json.dumps(value()),)
            self._file.execute('INSERT INTO notes VALUES (?, ?)', (name, *found))
        return json.loads(found[0])

    def append(self, record: dict) -> None:
        """Store a record of plain values, tensors and arrays; raises ``UserError`` if the first one holds others."""
        buffer = io.BytesIO()
        torch.save(record, buffer)
        packed = zlib.compress(buffer.getvalue(), 1)
        if len(self) == 0:
            self._unpack(packed)  # a record that cannot be read must stop the first step, not the end
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

    def __enter__(self) -> 'Journal':
        return self

    def __exit__(self, *error):
        self._file.close()

    def remove(self) -> None:
        """Delete the records and the file."""
        self._file.close()
        if self.path and Path(self.path).exists():
            os.remove(self.path)
