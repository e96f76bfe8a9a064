"""What the key ``type`` of a config names: a class, or a string in one of mmengine's forms."""


def full_name(kind) -> str:
    """``kind`` if it is a string; of a class, ``module.Name``."""
    return kind if isinstance(kind, str) else f'{getattr(kind, "__module__", "")}.{getattr(kind, "__qualname__", kind)}'


def type_name(kind) -> str:
    """``Name`` of ``Name``, ``scope.Name``, ``package.module.Name`` or a class."""
    return full_name(kind).rpartition('.')[2]


def is_type(cfg, wanted: str) -> bool:
    """Whether ``cfg``, a dict with a ``type`` or the value of one, names ``wanted``, a ``package.Name``.

    A ``Name`` alone may be of any package.
    """
    kind = full_name(cfg.get('type') if isinstance(cfg, dict) else cfg)
    name = type_name(wanted)
    return type_name(kind) == name and kind.partition('.')[0] in (wanted.partition('.')[0], name)


#: What the classifiers of mmpretrain are, which need not be installed.
CLASSIFIER = 'mmpretrain.BaseClassifier'


def derives(kind: type, wanted: str) -> bool:
    """Whether ``kind`` is or derives from ``wanted``, a ``package.Name``, whose package is not imported for it."""
    return any(f'{base.__module__.partition(".")[0]}.{base.__name__}' == wanted for base in kind.__mro__)
