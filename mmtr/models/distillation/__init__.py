"""Training with a frozen teacher: what all such losses share, the distillation of DAR, and healing."""

from .healing import Healing
from .projected import Distillation
from .taught import Taught, outputs_of

__all__ = ['Distillation', 'Healing', 'Taught', 'outputs_of']
