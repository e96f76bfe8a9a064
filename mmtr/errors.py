"""The one error that a user is meant to read, and how command-line tools show it."""
import functools
import sys


class UserError(ValueError):
    """Something that the user gave cannot work.

    The message is one sentence in the user's words: what was wrong, its value, what would be
    right. Tools print it alone, without a traceback.
    """


def in_words(error):
    """The ``UserError`` that ``error`` is or was caused by, or None.

    mmengine and torch wrap what goes wrong inside them, so the chain of causes is searched.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def command(main):
    """Decorator for a tool's ``main``: a ``UserError`` becomes one line on stderr and exit status 2.

    Ctrl-C gives exit status 130, and a line that says how to go on where the tool has put one into the
    ``KeyboardInterrupt``.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt as stop:
            print(stop.args[0] if stop.args else 'Interrupted.', file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            said = in_words(error)
            if said is None:
                raise
            print(f'Error: {said}', file=sys.stderr)
            sys.exit(2)

    return run
