"""The base class of losses with a frozen teacher."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.model import BaseModule
from torch import nn


class Taught(BaseModule):
    """A loss between the outputs of a model and of a frozen teacher for the same images.

    The teacher is no submodule: it is in no state dict, optimizer or data-parallel wrapper, and always in eval mode.

    Args:
        teacher: Backbone or whole model.
    """

    def __init__(self, teacher: nn.Module):
        super().__init__()
        teacher.requires_grad_(False)
        teacher.eval()
        self._teacher = (teacher,)

    @property
    def teacher(self) -> nn.Module:
        """The frozen backbone or model."""
        return self._teacher[0]

    def _apply(self, *args, **kwargs):
        # The teacher is no submodule, so it must be moved to a device or dtype here.
        self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Any]]:
    """Collect what ``module`` returns: a context that yields a list, with one item for each call."""
    outputs = []
    hook = module.register_forward_hook(lambda module, args, out: outputs.append(out))
    try:
        yield outputs
    finally:
        hook.remove()
