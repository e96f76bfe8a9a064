"""What is built from settings: checked by what ``mmtr/settings/`` declares, and found by the ``type`` of a key."""

import functools
import inspect
from collections.abc import Collection, Iterable
from typing import Any, Callable, Union

from mmengine.registry import Registry

from mmtr.config.types import full_name, is_type, type_name
from mmtr.errors import UserError
from mmtr.settings import Setting, nearest, shown


class Declared:
    """Mixin: what the annotations of ``__init__`` declare holds for every value that it gets, defaults included.

    Arguments that ``**kwargs`` hands on count as its own. A name that there is none of is a ``UserError``.
    """

    #: Before the name of a setting in errors: where users write it.
    setting_prefix = ''
    #: What arguments may be that come from a class of another library.
    inherited: dict[str, Setting] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if '__init__' not in vars(cls):
            return
        init, parameters = cls.__init__, _parameters(cls.__mro__, cls.inherited)
        own = next(iter(inspect.signature(init).parameters.values()))
        signature = inspect.Signature(parameters)

        @functools.wraps(init)
        def checked(self, *args, **given):
            refuse_unknown(cls.__name__, given, signature.parameters)
            bound = signature.bind(*args, **given)
            bound.apply_defaults()
            depth = getattr(bound.arguments.get('backbone'), 'depth', None)
            for name, declared in declarations(signature).items():
                bound.arguments[name] = declared.check(cls.setting_prefix + name, bound.arguments[name], depth)
            init(self, **bound.arguments)

        checked.__signature__ = inspect.Signature([own, *parameters])
        cls.__init__ = checked


def declarations(of: Union[type, inspect.Signature]) -> dict[str, Setting]:
    """What each setting of a ``Declared`` class, or of a signature, may be; of those that say so."""
    signature = of if isinstance(of, inspect.Signature) else inspect.signature(of)
    return {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, Setting)
    }


def build_from_key(key: str, registry: Registry, cfg: dict, check: Callable = lambda kind: None, **given) -> Any:
    """Build what ``cfg``, the value of ``key``, names in ``registry``.

    Args:
        check: Told the type that is named, before its settings are looked at.
        given: Arguments that are no settings.

    Raises:
        UserError: The type or one of its settings does not exist, or a setting cannot work.
    """
    registry.import_from_location()
    known = sorted(registry.module_dict)
    if not isinstance(cfg, dict) or 'type' not in cfg:
        raise UserError(f"{key}={shown(cfg)} must be None or dict(type='...', ...) with one of: {', '.join(known)}.")
    settings = dict(cfg)
    name = settings.pop('type')
    kind = registry.module_dict.get(type_name(name))
    if kind is None or not (is_type(name, f'mmtr.{kind.__name__}') or is_type(name, full_name(kind))):
        raise UserError(f'{key}.type={shown(name)} is unknown{nearest(name, known)}: choose one of {", ".join(known)}.')
    check(kind)
    refuse_unknown(
        f'{key} of type {type_name(name)}',
        settings,
        [setting for setting in inspect.signature(kind).parameters if setting not in given],
    )
    return kind(**given, **settings)


def refuse_unknown(what: str, names: Iterable[str], allowed: Collection[str]) -> None:
    """Raise a ``UserError`` that names the nearest setting unless all ``names`` are ``allowed``."""
    for name in names:
        if name not in allowed:
            raise UserError(f'{what} has no setting {name!r}{nearest(name, allowed)}: it has {", ".join(allowed)}.')


def _parameters(mro, inherited):
    """Those of the first ``__init__`` in ``mro``, and those that it hands on, each by its name."""
    while mro and ('__init__' not in vars(mro[0]) or mro[0] is object):
        mro = mro[1:]
    if not mro:
        return []
    found = list(inspect.signature(vars(mro[0])['__init__']).parameters.values())[1:]
    kinds = {parameter.kind for parameter in found}
    own = [parameter for parameter in found if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    names = {parameter.name for parameter in own}
    handed_on = (
        []
        if inspect.Parameter.VAR_KEYWORD not in kinds
        else [
            parameter.replace(annotation=inherited.get(parameter.name, parameter.annotation))
            for parameter in _parameters(mro[1:], inherited)
            if parameter.name not in names
        ]
    )
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return handed_on + own
    return own + [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in handed_on]
