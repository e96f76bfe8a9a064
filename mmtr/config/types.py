"""Read the key ``type`` of a config, which holds a class or its name in one of mmengine's forms."""

from typing import Any, Union


def full_name(kind: Union[str, type]) -> str:
    """Return ``module.Name`` of a class; a string is returned as it is."""
    return kind if isinstance(kind, str) else f'{getattr(kind, "__module__", "")}.{getattr(kind, "__qualname__", kind)}'


def type_name(kind: Union[str, type]) -> str:
    """Return ``Name`` of ``Name``, ``scope.Name``, ``package.module.Name`` or a class."""
    return full_name(kind).rpartition('.')[2]


def is_type(cfg: Any, wanted: str) -> bool:
    """Whether ``cfg`` names the class ``wanted``, a ``package.Name``.

    Args:
        cfg: A dict with the key ``type``, or the value of that key. A ``Name`` without a package matches any package.
    """
    kind = full_name(cfg.get('type') if isinstance(cfg, dict) else cfg)
    name = type_name(wanted)
    return type_name(kind) == name and kind.partition('.')[0] in (wanted.partition('.')[0], name)


#: What the classifiers of mmpretrain are, which need not be installed.
CLASSIFIER = 'mmpretrain.BaseClassifier'


def derives(kind: type, wanted: str) -> bool:
    """Tell whether ``kind`` derives from ``wanted``, a ``package.Name``; the package is not imported for it."""
    return any(f'{base.__module__.partition(".")[0]}.{base.__name__}' == wanted for base in kind.__mro__)
