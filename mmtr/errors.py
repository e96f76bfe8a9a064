"""The one error that a user is meant to read, and how command-line tools show it."""

import functools
import sys


class UserError(ValueError):
    """Something that the user gave cannot work.

    The message is one sentence in the user's words: what was wrong, its value, what would be
    right. Tools print it alone, without a traceback.
    """

    def __init__(self, message):
        # torch repeats what a worker of a DataLoader raised as the text of its traceback, which ends with the message.
        super().__init__(message.rsplit(f'{__name__}.UserError: ', 1)[-1].strip())


def in_chain(error, kind):
    """The first exception of a kind among ``error`` and what caused it, or None.

    mmengine and torch wrap what goes wrong inside them, even Ctrl-C.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kind):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def in_words(error):
    """The ``UserError`` that ``error`` is or was caused by, or None."""
    return in_chain(error, UserError)


def command(main):
    """Decorator for a tool's ``main``: a ``UserError`` becomes one line on stderr and exit status 2.

    Ctrl-C gives exit status 130, and a line that says how to go on where the tool has put one into the
    ``KeyboardInterrupt``.
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
