"""Twins: the mmtr counterparts of stock modules, which share all weights with them.

A twin is an instance of a subclass with the attributes of the stock instance: no parameter is copied, no key of the
``state_dict`` changes, and the stock instance is not modified.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Callable, Optional, Union

from torch import nn

#: Full name of a stock class -> function of (module, attn_backend) that makes its twin.
_TWINS: dict[str, Callable] = {}


def _name(cls):
    return f'{cls.__module__}.{cls.__qualname__}'


def twin_of(stock: Union[type, str]) -> Callable:
    """Register a function that makes the twins of a stock class; a decorator.

    Args:
        stock: The class, or its full name, which avoids importing it. Subclasses of it have no twin.
    """

    def register(make):
        _TWINS[stock if isinstance(stock, str) else _name(stock)] = make
        return make

    return register


def backbone_twin(cls: type) -> Callable:
    """Return a function of (module, attn_backend) that makes the twin ``cls``, a ``TunableBackbone``, of a backbone."""

    def make(module, attn_backend):
        twin = share(cls, module)
        twin.make_tunable(attn_backend)
        return twin

    make.own = lambda: cls
    return make


def late_twin(module: str, name: str) -> Callable:
    """Return a function as of ``backbone_twin`` for the class ``name`` of ``module``, which is imported when called."""

    def own():
        return getattr(import_module(module), name)

    def make(stock, attn_backend):
        return backbone_twin(own())(stock, attn_backend)

    make.own = own
    return make


def own_backbone(stock: type) -> Optional[type]:
    """Return the class of mmtr for a stock backbone; None: there is none."""
    make = _TWINS.get(_name(stock))
    return None if make is None else make.own()


def backbones_in_words(own: Iterable[type]) -> str:
    """List the backbones that have a twin, and those of mmtr, as ``VisionTransformer of mmseg or mmtr, ...``."""
    libraries: dict[str, list[str]] = {}
    stock = (name.split('.') for name in _TWINS if '.backbones.' in name)
    for library, *_, name in (*stock, *(('mmtr', cls.__name__) for cls in own)):
        libraries.setdefault(name, []).append(library)
    return ', '.join(f'{name} of {" or ".join(found)}' for name, found in libraries.items())


def share(cls: type, module: nn.Module) -> nn.Module:
    """Make an instance of ``cls`` with the attributes, parameters and children of ``module``.

    Args:
        cls: Subclass of ``type(module)``, or of the same class in another OpenMMLab library.
        module: Stock module.
    """
    twin = cls.__new__(cls)
    twin.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    return twin


def make_twin(module: nn.Module, attn_backend: str) -> Optional[nn.Module]:
    """Return a twin of ``module``, or None if its class has none."""
    make = _TWINS.get(_name(type(module)))
    return None if make is None else make(module, attn_backend)


def replace_with_twins(module: nn.Module, attn_backend: str = 'auto') -> list[nn.Module]:
    """Replace all descendants of ``module`` that have a twin, in place, and return the twins."""
    twins = []
    for name, child in module.named_children():
        twin = make_twin(child, attn_backend)
        if twin is not None:
            setattr(module, name, twin)
            twins.append(twin)
        else:
            twins += replace_with_twins(child, attn_backend)
    return twins
