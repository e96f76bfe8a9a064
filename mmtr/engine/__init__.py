from mmtr.checkpoints import files as checkpoint  # noqa: F401  they put safe loading and packaged configs in force
from mmtr.config import files as configs  # noqa: F401  they put safe loading and packaged configs in force

from .hooks import token_reduction  # noqa: F401  models built without a runner follow it too
from .layer_decay import LayerDecayConstructor
from .optim_wrapper import CPUAmpOptimWrapper
from .trainable import TrainableConstructor

__all__ = ['CPUAmpOptimWrapper', 'LayerDecayConstructor', 'TrainableConstructor']
