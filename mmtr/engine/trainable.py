"""An optimizer of the parameters that are trained."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmtr.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default, which gives frozen parameters to the optimizer too, or warns about each one.

    Its arguments are the same.
    """

    def __call__(self, model):
        """The optimizer of ``model``."""
        if not self.paramwise_cfg:
            model = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        return super().__call__(model)

    def add_params(self, params, module, *args, **kwargs):
        """As stock, for modules that have something to train."""
        if any(p.requires_grad for p in module.parameters()):
            super().add_params(params, module, *args, **kwargs)
