"""Hooks that must run before or after all others, whatever the priority of those."""


def put_first(runner, hook):
    """Let ``hook`` run before all others from now on; for its ``before_run``."""
    runner._hooks = [hook, *_others(runner, hook)]


def put_last(runner, hook):
    """Let ``hook`` run after all others from now on; for its ``before_run``."""
    runner._hooks = [*_others(runner, hook), hook]


def _others(runner, hook):
    # Another list: the runner is going through the old one.
    return [other for other in runner._hooks if other is not hook]
