"""Turn stock modules into their mmtr counterparts, sharing every weight.

A twin is an instance of a subclass with the stock instance's own content: no parameter is copied, no
key of the ``state_dict`` changes, and the stock instance stays what it was.
"""

from collections.abc import Iterable
from typing import Callable, Optional, Union

from torch import nn

#: Full name of a stock class -> function of (module, attn_backend) that returns its twin.
_TWINS: dict[str, Callable] = {}


def _name(cls):
    return f'{cls.__module__}.{cls.__qualname__}'


def twin_of(stock: Union[type, str]) -> Callable:
    """Decorator: the function that makes the twin of exactly this class (a subclass may differ in more).

    A class is given by its full name where it is not worth importing what holds it.
    """

    def register(make):
        _TWINS[stock if isinstance(stock, str) else _name(stock)] = make
        return make

    return register


def backbone_twin(cls: type) -> Callable:
    """The function of (module, attn_backend) that makes a ``TunableBackbone`` of a stock backbone."""

    def make(module, attn_backend):
        twin = share(cls, module)
        twin.make_tunable(attn_backend)
        return twin

    return make


def backbones_in_words(own: Iterable[type]) -> str:
    """Which backbones have a twin, and which are ``own``: ``VisionTransformer of mmseg or mmtr, ...``."""
    libraries: dict[str, list[str]] = {}
    stock = (name.split('.') for name in _TWINS if '.backbones.' in name)
    for library, *_, name in (*stock, *(('mmtr', cls.__name__) for cls in own)):
        libraries.setdefault(name, []).append(library)
    return ', '.join(f'{name} of {" or ".join(found)}' for name, found in libraries.items())


def share(cls: type, module: nn.Module) -> nn.Module:
    """An instance of ``cls`` with the parameters and children of ``module``.

    ``cls`` is a subclass of ``type(module)``, or of its like in another OpenMMLab library.
    """
    twin = cls.__new__(cls)
    twin.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in module.__dict__.items()}
    return twin


def make_twin(module: nn.Module, attn_backend: str) -> Optional[nn.Module]:
    """The twin of ``module``, or None if its class has none."""
    make = _TWINS.get(_name(type(module)))
    return None if make is None else make(module, attn_backend)


def replace_with_twins(module: nn.Module, attn_backend: str = 'auto') -> list[nn.Module]:
    """Put twins in the place of all descendants of ``module`` that have one, and return these."""
    twins = []
    for name, child in module.named_children():
        twin = make_twin(child, attn_backend)
        if twin is not None:
            setattr(module, name, twin)
            twins.append(twin)
        else:
            twins += replace_with_twins(child, attn_backend)
    return twins
