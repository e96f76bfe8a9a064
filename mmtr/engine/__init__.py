from mmtr.config import files as configs  # noqa: F401  packaged configs are found from now on

from . import loaders  # noqa: F401  checkpoints are read as data from now on
from .hooks import token_reduction  # noqa: F401  models built without a runner follow it too
from .layer_decay import LayerDecayConstructor
from .optim_wrapper import CPUAmpOptimWrapper
from .trainable import TrainableConstructor

__all__ = ['CPUAmpOptimWrapper', 'LayerDecayConstructor', 'TrainableConstructor']
