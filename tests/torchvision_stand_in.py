"""The names that mmpretrain's import asks of torchvision; there is none on PyPI for torch without CUDA."""

import enum
import sys
from types import ModuleType

InterpolationMode = enum.Enum('InterpolationMode', 'NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS')


def install():
    """Make it importable as torchvision; nothing in it can be called."""
    names = ('', '.ops', '.ops.boxes', '.transforms', '.transforms.functional', '.transforms.transforms')
    for name in (f'torchvision{name}' for name in names):
        sys.modules[name] = ModuleType(name)
        parent, _, child = name.rpartition('.')
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    sys.modules['torchvision'].__version__ = '0.0'  # which mmengine logs
    sys.modules['torchvision.transforms'].RandomResizedCrop = type('RandomResizedCrop', (), {})
    sys.modules['torchvision.transforms.transforms'].InterpolationMode = InterpolationMode
