from . import checkpoint  # noqa: F401  puts safe loading in force
from .optim_wrapper import CPUAmpOptimWrapper

__all__ = ['CPUAmpOptimWrapper']
