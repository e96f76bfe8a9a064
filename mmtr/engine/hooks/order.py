"""Move hooks before or after all others, whatever their priority."""

from mmengine.hooks import Hook
from mmengine.runner import Runner


def put_first(runner: Runner, hook: Hook) -> None:
    """Move ``hook`` before all others; call it in ``before_run`` of the hook."""
    runner._hooks = [hook, *_others(runner, hook)]


def put_last(runner: Runner, hook: Hook) -> None:
    """Move ``hook`` after all others; call it in ``before_run`` of the hook."""
    runner._hooks = [*_others(runner, hook), hook]


def _others(runner, hook):
    # A new list: the runner iterates over the old one.
    return [other for other in runner._hooks if other is not hook]
