"""Checks of the settings that a user writes into a key of a backbone, and the builder of what the key names."""
import inspect
from typing import Callable, Optional

from mmengine.registry import Registry

from mmtr.errors import UserError
from mmtr.types import full_name, is_type, type_name


def build_from_key(key: str, registry: Registry, cfg: dict, check: Callable = lambda kind: None, **given):
    """Build what ``cfg``, the value of ``key``, names in ``registry``.

    Args:
        check: Told the type that is named, before its settings are looked at.
        given: Arguments that are no settings.

    Raises:
        UserError: The type or one of its settings does not exist, or a setting cannot work.
    """
    registry.import_from_location()
    known = ', '.join(sorted(registry.module_dict))
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise UserError(f"{key}={cfg!r} must be None or dict(type='...', ...) with one of: {known}.")
    settings = dict(cfg)
    name = settings.pop('type')
    kind = registry.module_dict.get(type_name(name))
    if kind is None or not (is_type(name, f'mmtr.{kind.__name__}') or is_type(name, full_name(kind))):
        raise UserError(f'{key}.type={name!r} is unknown: choose one of {known}.')
    check(kind)
    allowed = [setting for setting in inspect.signature(kind).parameters if setting not in given]
    for setting in settings:
        if setting not in allowed:
            raise UserError(f'{key} of type {type_name(name)} has no setting {setting!r}: it has {", ".join(allowed)}.')
    return kind(**given, **settings)


def check_choice(key: str, value, choices) -> None:
    """Raise a ``UserError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f'{key}={value!r} is unknown: choose one of {", ".join(map(str, choices))}.')


def check_number(key: str, value, fits: Callable[[float], bool], words: str) -> float:
    """Return ``value`` if it is a number that ``fits``.

    Args:
        words: What would be right, to follow "must be".

    Raises:
        UserError: It is no number, or does not fit.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise UserError(f'{key}={value!r} must be {words}.')
    return value


def check_whole(key: str, value, low: int, high: Optional[int] = None) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``; raises ``UserError`` if not."""
    span = f'of at least {low}' if high is None else f'from {low} to {high}'
    return int(check_number(key, value, lambda n: n // 1 == n and low <= n <= (n if high is None else high),
                            f'a whole number {span}'))
