"""Convert configs in pure Python (``read_base()``, classes as types) to configs that name their classes."""

import inspect

from mmengine import registry
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_object_from_string

from mmtr.registry import PEFTS, TOKEN_REDUCERS

#: Keys whose value names a class or function in a registry.
KEYS = ('type', 'constructor')


def is_pure(cfg: Config) -> bool:
    """Whether a config was read from a file in mmengine's pure-Python style."""
    return bool(cfg.filename) and Config._is_lazy_import(cfg.filename)


def with_names(cfg: Config) -> Config:
    """Replace each class or function that is a ``type`` in ``cfg`` by its name in the registry.

    OpenMMLab compares types with names and dumps names: a class copied into another dict gives a file that cannot be
    read. A path ``package.module.Name``, which mmengine writes for a class, is replaced too. A class in no registry
    becomes such a path. If ``default_scope`` is not set, it becomes the library of the model, so that names need no
    scope.

    Raises:
        ImportError: A class is not in the module that the config imports it from.
    """
    raw = cfg._to_lazy_dict()
    built = {}

    def build(node, key=None):  # all before the first name is looked up: an import registers classes
        if isinstance(node, dict):
            for each, value in node.items():
                build(value, each)
        elif isinstance(node, (list, tuple)):
            for value in node:
                build(value)
        elif key in KEYS and isinstance(node, (LazyObject, LazyAttr)):
            built[node] = node.build()
        elif key in KEYS and isinstance(node, str) and node.count('.') > 1:
            built[node] = get_object_from_string(node)

    def named(node, key=None):
        if isinstance(node, dict):
            return {each: named(value, each) for each, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(named(value) for value in node)
        if key not in KEYS or built.get(node) is None:
            return node
        return names.get(built[node]) or (node if isinstance(node, str) else f'{node.module}.{node}')

    build(raw)
    if not built:
        return cfg
    model = (raw.get('model') or {}).get('type')
    scope = raw['default_scope'] = raw.get('default_scope') or _library(built.get(model))
    names = _registered(scope)
    object.__setattr__(cfg, '_cfg_dict', ConfigDict(named(raw)))
    return cfg


def _library(kind):
    """The OpenMMLab library that a class, or one of its base classes, is from; None if there is none."""
    packages = [base.__module__.partition('.')[0] for base in inspect.getmro(kind)] if inspect.isclass(kind) else []
    return next((name for name in packages if name in MODULE2PACKAGE and name not in ('mmengine', 'mmcv')), None)


def _registered(scope):
    """Map each registered class or function to its name under the scope ``scope``; None if registries differ."""
    names = {}
    roots = [each for each in vars(registry).values() if isinstance(each, registry.Registry)]
    for root in (*roots, TOKEN_REDUCERS, PEFTS):
        own = root.children.get(scope)
        for each in (root, *root.children.values()):
            first = {kind: name for name, kind in reversed(each.module_dict.items())}
            for kind, name in first.items():
                bare = each is own or each is root and (own is None or name not in own.module_dict)
                text = name if bare else f'{each.scope}.{name}'
                names[kind] = text if names.get(kind, text) == text else None
    return names
