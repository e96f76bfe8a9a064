from mmtr.config import files as configs  # noqa: F401  makes mmengine find 'mmtr::NAME.py'

from . import loaders  # noqa: F401  makes mmengine read checkpoints as data only
from .hooks import token_reduction  # noqa: F401  applies the hook also to models built without a runner
from .layer_decay import LayerDecayConstructor
from .optim_wrapper import CPUAmpOptimWrapper
from .trainable import TrainableConstructor
from .two_stage import TwoStagePolyLR

__all__ = ['CPUAmpOptimWrapper', 'LayerDecayConstructor', 'TrainableConstructor', 'TwoStagePolyLR']
