"""An optimizer constructor that leaves out frozen parameters."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import nn

from mmtr.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableConstructor(DefaultOptimWrapperConstructor):
    """mmengine's ``DefaultOptimWrapperConstructor`` without frozen parameters; its arguments are the same.

    mmengine's passes frozen parameters to the optimizer, or warns about each of them.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of the trainable parameters of ``model``."""
        if not self.paramwise_cfg:
            model = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        return super().__call__(model)

    def add_params(self, params: list[dict], module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Append the groups of ``module`` as mmengine does, if it has trainable parameters."""
        if any(p.requires_grad for p in module.parameters()):
            super().add_params(params, module, *args, **kwargs)
