"""Tensors within tuples, lists and dicts."""

from typing import Any

from torch import Tensor


def tensors(outputs: Any) -> list[Tensor]:
    """List the tensors of floating-point numbers in nested tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (list, tuple)) else ()
    return [each for value in values for each in tensors(value)]
