"""mmcv's compiled operators where mmcv has none, as mmcv-lite: a stand-in for them, and which models need them.

mmseg imports ``mmcv.ops``, and that ``mmcv._ext``, whether or not an operator is ever called.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from torch import nn

from mmtr.errors import UserError

_NAME = 'mmcv._ext'
_REMEDY = (
    'mmcv is installed without compiled operators (mmcv-lite): run `make install`, or install the full mmcv in '
    'its place.'
)


class _StandIn(ModuleType):
    """``mmcv._ext`` whose every function raises a ``UserError`` when it is called."""

    def __init__(self):
        super().__init__(_NAME)
        # Without a loader: mmcv and mmengine ask for one to know whether the operators are there.
        self.__spec__ = ModuleSpec(_NAME, loader=None)

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)

        def operator(*args, **kwargs):
            raise UserError(f"The operator '{name}' of mmcv is needed, but {_REMEDY}")

        return operator

    def get_compiler_version(self):
        """What mmcv reports of its environment."""
        return 'n/a'

    get_compiling_cuda_version = get_compiler_version


def compiled() -> bool:
    """Whether mmcv has its operators."""
    return importlib.util.find_spec(_NAME).loader is not None


def stand_in() -> None:
    """Put the stand-in in the place of ``mmcv._ext``, where that is absent."""
    if importlib.util.find_spec(_NAME) is None:
        sys.modules[_NAME] = _StandIn()


def check_operators(model: nn.Module) -> nn.Module:
    """Return ``model``; raises a ``UserError`` if it needs operators of mmcv that are not there."""
    if not compiled():
        needed = sorted({name for module in model.modules() for name in _operators(module)})
        if needed:
            raise UserError(f'The model needs {", ".join(needed)}, but {_REMEDY}')
    return model


def _operators(module):
    for kind in type(module).__mro__:
        # Deformable attention runs without on a CPU.
        if (
            kind.__module__.startswith('mmcv.ops.')
            and kind.__module__ != 'mmcv.ops.multi_scale_deform_attn'
            and (hasattr(sys.modules[kind.__module__], 'ext_module'))
        ):
            yield kind.__name__
    for cfg in (getattr(module, key, None) for key in ('train_cfg', 'test_cfg')):
        if _suppresses(cfg):
            yield 'NMS'


def _suppresses(cfg):
    if isinstance(cfg, (list, tuple)):
        return any(map(_suppresses, cfg))
    return isinstance(cfg, dict) and (bool(cfg.get('nms')) or any(map(_suppresses, cfg.values())))
