"""Run a model only for the shapes of its tensors: expensive operators return zeros of the right shape."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {
    torch.ops.aten.mm: lambda a, b: (a.shape[0], b.shape[1]),
    torch.ops.aten.addmm: lambda c, a, b: (a.shape[0], b.shape[1]),
    torch.ops.aten.bmm: lambda a, b: (*a.shape[:2], b.shape[2]),
    torch.ops.aten.baddbmm: lambda c, a, b: (*a.shape[:2], b.shape[2]),
}
# Convolutions are not replaced: torch.jit.trace does not record them within a dispatch mode.
_CALLS = (
    F.linear,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    torch.mm,
    torch.einsum,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.bmm,
)
# torch 2.1 lacks this operator; there, attention is computed.
_FLASH = getattr(torch.ops.aten, '_scaled_dot_product_flash_attention_for_cpu', None)


class _Zeros(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shape = _PRODUCTS.get(func.overloadpacket)
        if shape is not None:
            return args[0].new_zeros([int(n) for n in shape(*args)])
        if func.overloadpacket is _FLASH:
            query, value = args[0], args[2]
            return (
                query.new_zeros([int(n) for n in (*query.shape[:-1], value.shape[-1])]),
                query.new_zeros([int(n) for n in query.shape[:-1]]),
            )
        return func(*args, **(kwargs or {}))


class ShapesOnly(TorchFunctionMode):
    """Context in which matrix products and fused attention on a CPU return zeros; they can still be traced."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """See ``torch.overrides``."""
        if func in _CALLS:
            with _Zeros():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
