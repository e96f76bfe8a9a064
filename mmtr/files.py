"""Files that are whole or not there."""

import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path, suffix=''):
    """Context that yields another path in the same folder; what is written there replaces ``path`` at the end.

    That path ends in ``suffix``, for writers that go by it.

    An error, or Ctrl-C, leaves nothing behind; a process that is killed does: see :func:`remove_leftovers`.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    # On the same disk: only then is the replacement one step.
    partial = os.path.join(folder, f'.{name}.{os.getpid()}.part{suffix}')
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


def write_text(path, text: str) -> None:
    """Write a text file as :func:`written_whole` does."""
    with written_whole(path) as partial:
        Path(partial).write_text(text)
