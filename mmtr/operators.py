"""A stand-in for mmcv's compiled operators where they are missing (mmcv-lite), and a check of which models need them.

mmseg imports ``mmcv.ops``, which imports ``mmcv._ext``, even if no operator is ever called.
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
    """Module ``mmcv._ext`` in which every function raises a ``UserError`` when it is called."""

    def __init__(self):
        super().__init__(_NAME)
        # mmcv and mmengine take the operators for missing if the module has no loader.
        self.__spec__ = ModuleSpec(_NAME, loader=None)

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)

        def operator(*args, **kwargs):
            raise UserError(f"The operator '{name}' of mmcv is needed, but {_REMEDY}")

        return operator

    def get_compiler_version(self):
        """Return the compiler version that mmcv reports in its environment."""
        return 'n/a'

    get_compiling_cuda_version = get_compiler_version


def compiled() -> bool:
    """Whether the installed mmcv has compiled operators."""
    return importlib.util.find_spec(_NAME).loader is not None


def stand_in() -> None:
    """Import the stand-in as ``mmcv._ext`` if mmcv has none."""
    if importlib.util.find_spec(_NAME) is None:
        sys.modules[_NAME] = _StandIn()


def check_operators(model: nn.Module) -> nn.Module:
    """Return ``model`` unchanged if mmcv has all operators that it needs.

    Raises:
        UserError: mmcv has no compiled operators, and the model needs some.
    """
    if not compiled():
        needed = sorted({name for module in model.modules() for name in _operators(module)})
        if needed:
            raise UserError(f'The model needs {", ".join(needed)}, but {_REMEDY}')
    return model


def _operators(module):
    for kind in type(module).__mro__:
        # Deformable attention also runs without the operator, on a CPU.
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
