"""Mixed precision where mmengine's ``AmpOptimWrapper`` refuses: on a CPU."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper

from mmtr.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward passes run under bfloat16 autocast; bfloat16 needs no loss scaling."""

    @contextmanager
    def optim_context(self, model):
        """Context of a forward pass in training."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
