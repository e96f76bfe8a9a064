"""``UserError``, the error that a user is meant to read, and how command-line tools show it."""

import functools
import sys
from typing import Callable, Optional


class UserError(ValueError):
    """An input of the user (a setting, a file, an option) that cannot work.

    The message is one sentence in the user's words: what is wrong, its value, and what would be right.
    Tools print it without a traceback.
    """

    def __init__(self, message: str):
        # torch re-raises an error of a DataLoader worker with its traceback as text; the message stands at its end.
        super().__init__(message.rsplit(f'{__name__}.UserError: ', 1)[-1].strip())


def in_chain(error: Optional[BaseException], kind: type[BaseException]) -> Optional[BaseException]:
    """Find the first exception of class ``kind`` among ``error`` and its causes; None if there is none.

    mmengine and torch wrap exceptions in others, even Ctrl-C.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def in_words(error: BaseException) -> Optional[UserError]:
    """Find the ``UserError`` among ``error`` and its causes; None if there is none."""
    return in_chain(error, UserError)


def command(main: Callable) -> Callable:
    """Decorate a tool's ``main``: a ``UserError`` becomes one line on stderr and exit status 2.

    Ctrl-C becomes exit status 130 and a line on stderr: the argument of the ``KeyboardInterrupt``, in which a tool
    can say how to go on, or 'Interrupted.'.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except (KeyboardInterrupt, Exception) as error:
            stop, said = in_chain(error, KeyboardInterrupt), in_words(error)
            if stop is not None:
                print(stop.args[0] if stop.args else 'Interrupted.', file=sys.stderr)
                sys.exit(130)
            if said is None:
                raise
            print(f'Error: {said}', file=sys.stderr)
            sys.exit(2)

    return run
