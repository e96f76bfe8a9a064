"""mmpretrain, which need not be installed: what needs it says so, and no torchvision below it stops ``import mmtr``."""

import sys
from importlib import import_module
from importlib.util import find_spec

import torch

from mmtr.errors import UserError

#: Operators that torchvision's Python code looks up when it is imported, whether or not its library could be loaded.
_SCHEMAS = (
    'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
)
#: torch forgets the operators of a library that nobody holds.
_declared: list[torch.library.Library] = []
#: Why a package that is there counts as absent.
_left_out: dict[str, str] = {}


def settle_torchvision() -> None:
    """Make an installed torchvision importable, or absent, before mmdet imports mmpretrain and so torchvision.

    PyPI's torchvision is for CUDA, and cannot load its library beside a torch for CPUs. With its operators declared
    the rest of it works; a declared operator fails when it is called.
    """
    names = ('mmpretrain', 'torchvision')
    if any(name in sys.modules or find_spec(name) is None for name in names) or _imported():
        return
    if not hasattr(torch.ops.torchvision, 'nms'):
        library = torch.library.Library('torchvision', 'FRAGMENT')
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)
    if not _imported():
        sys.modules['torchvision'] = None  # mmdet and Python take that for a package that is not there


def _imported():
    """Whether torchvision can be imported; an ``ImportError`` is one that mmdet expects."""
    try:
        import_module('torchvision')
    except ImportError:
        pass
    except Exception as error:
        _left_out['torchvision'] = f'torchvision: {error}'
        for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
            del sys.modules[name]
        return False
    return True


def import_mmpretrain(what: str) -> None:
    """Import mmpretrain.

    Args:
        what: What needs it, to begin a sentence.

    Raises:
        UserError: mmpretrain is not installed, or something that it imports cannot be imported.
    """
    try:
        import_module('mmpretrain.models')
    except ImportError as error:
        cause = _left_out.get('torchvision', error) if sys.modules.get('torchvision', ...) is None else error
        why = 'is not installed' if find_spec('mmpretrain') is None else f'cannot be imported here ({cause})'
        raise UserError(
            f'{what} needs mmpretrain, which {why}: run `pip install mmtr[cls]` and, for this torch, '
            f"`pip install --no-deps 'torchvision=={_fitting_torchvision()}'`."
        ) from error


def _fitting_torchvision():
    """torchvision 0.16 is that of torch 2.1, and so on."""
    return f'0.{int(str(torch.__version__).split(".")[1]) + 15}.*'
