"""Write files atomically: a file is complete or absent."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Union


@contextmanager
def written_whole(path: Union[str, Path], suffix: str = '') -> Iterator[str]:
    """Write a file atomically: the context yields a temporary path, whose file replaces ``path`` at the end.

    An error or Ctrl-C removes the temporary file; a killed process leaves it behind: see :func:`remove_leftovers`.

    Args:
        path: The file; its folder is created.
        suffix: End of the temporary path, for writers that choose the format by the suffix.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    # In the same folder, so on the same disk: only there is the replacement atomic.
    partial = os.path.join(folder, f'.{name}.{os.getpid()}.part{suffix}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def remove_leftovers(folder: Union[str, Path], name: str = r'.+\.pth|last_checkpoint') -> None:
    """Remove temporary files of killed processes from ``folder``.

    Args:
        folder: May be absent.
        name: Regular expression for the names of the files that were to be written.
    """
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        found = re.fullmatch(rf'\.(?:{name})\.(\d+)\.part', entry)
        if found and not _is_alive(int(found[1])):
            with suppress(OSError):
                os.remove(os.path.join(folder, entry))


def _is_alive(process):
    if process == os.getpid():
        return False  # containers reuse process numbers, and this process is not writing
    if os.name == 'nt':
        return True  # on Windows, os.kill would end the process
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a text file atomically; see :func:`written_whole`."""
    with written_whole(path) as partial:
        Path(partial).write_text(text)
