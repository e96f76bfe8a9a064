"""Classes that check their settings when they are built, and building them from a config with ``type``."""

import functools
import inspect
from collections.abc import Collection, Iterable
from typing import Any, Callable, Union

from mmengine.registry import Registry

from mmtr.config.types import full_name, is_type, type_name
from mmtr.errors import UserError
from mmtr.settings import Setting, nearest, shown


class Declared:
    """Mixin that checks the arguments of ``__init__``, defaults included, before it runs.

    An annotation that is a ``Setting`` declares what its argument may be. Arguments that ``**kwargs`` passes to a base
    class are checked as well. An unknown or unfit argument raises a ``UserError``.
    """

    #: Prefix of setting names in error messages, such as ``token_reduction.``.
    setting_prefix = ''
    #: Declarations of the arguments of base classes from other libraries, by name.
    inherited: dict[str, Setting] = {}
    #: Names of the arguments of base classes that a class sets itself, so that nobody else does.
    decided: Collection[str] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if '__init__' not in vars(cls):
            return
        init = cls.__init__
        parameters = [each for each in _parameters(cls.__mro__, cls.inherited) if each.name not in cls.decided]
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
    """Return the declared settings of a ``Declared`` class, or of a signature, by name."""
    signature = of if isinstance(of, inspect.Signature) else inspect.signature(of)
    return {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, Setting)
    }


def build_from_key(key: str, registry: Registry, cfg: dict, check: Callable = lambda kind: None, **given) -> Any:
    """Build an object from the config of a key.

    Args:
        key: Name of the key, for error messages.
        registry: Registry that holds the type.
        cfg: ``dict(type=..., **settings)``.
        check: Called with the class before its settings are checked; it may raise.
        given: Further arguments of the class, which are no settings.

    Returns:
        An instance of the class that ``type`` names.

    Raises:
        UserError: ``cfg`` is no such dict, or its type or a setting does not exist or is unfit.
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
    """Refuse unknown settings.

    Args:
        what: The thing that has the settings, for the error message.
        names: Names of settings that were given.
        allowed: Names of settings that exist.

    Raises:
        UserError: One of ``names`` is not in ``allowed``; the message names the most similar one.
    """
    for name in names:
        if name not in allowed:
            raise UserError(f'{what} has no setting {name!r}{nearest(name, allowed)}: it has {", ".join(allowed)}.')


def _parameters(mro, inherited):
    """Parameters of the first ``__init__`` in ``mro``, with those of the next one if it takes ``**kwargs``."""
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
