"""Count the multiply-adds of a forward pass with fvcore, fused attention included."""

import copy
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Optional, Union

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import bmm_flop_jit, elementwise_flop_counter, get_shape
from torch import Tensor, nn

from mmtr.models.backbones.common.open_outputs import OpenOutputs
from mmtr.models.backbones.common.reduced_outputs import ReducedOutputs


def _fused_attention(inputs, outputs):
    # Queries (B, heads, N, D), keys (B, heads, M, D), values (B, heads, M, E): q k^T, then the weighted sum of values.
    query, key, value = (get_shape(v) for v in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _fused_attention_heads_last(inputs, outputs):
    query, key, value = (get_shape(v) for v in inputs[:3])
    return prod(query[:-1]) * key[1] * (query[-1] + value[-1])


def _native_multi_head_attention(inputs, outputs):
    batch, queries, channels = get_shape(inputs[0])
    keys = get_shape(inputs[1])[1]
    projections = 2 * queries * channels**2 + 2 * keys * channels**2
    return batch * (projections + 2 * queries * keys * channels)


def _cdist(inputs, outputs):
    return prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _embedding_bag(inputs, outputs):
    # Sums rows of a table (N, C): one multiply-add for each element of a row.
    return prod(get_shape(inputs[1])) * get_shape(inputs[0])[-1]


_HANDLERS = {
    **dict.fromkeys(
        (
            'aten::scaled_dot_product_attention',
            'aten::_scaled_dot_product_flash_attention',
            'aten::_scaled_dot_product_flash_attention_for_cpu',
            'aten::_scaled_dot_product_efficient_attention',
            'aten::_scaled_dot_product_cudnn_attention',
        ),
        _fused_attention,
    ),
    **dict.fromkeys(
        ('aten::_flash_attention_forward', 'aten::_efficient_attention_forward'), _fused_attention_heads_last
    ),
    'aten::_native_multi_head_attention': _native_multi_head_attention,
    'aten::baddbmm': lambda inputs, outputs: bmm_flop_jit(inputs[1:3], outputs),
    'aten::cdist': _cdist,
    'aten::embedding_bag': _embedding_bag,
    **dict.fromkeys(('aten::upsample_bicubic2d', 'aten::_upsample_bicubic2d_aa'), elementwise_flop_counter(0, 16)),
}

# Operators of a few operations an element, or none: negligible beside products over channels or tokens. An operator
# that is neither counted nor listed here is reported as unsupported.
_NEGLIGIBLE = [
    f'aten::{name}'
    for name in """
    _shape_as_tensor _softmax abs adaptive_max_pool2d add add_ alias all amax amin any argmax argmin argsort as_strided
    avg_pool2d bernoulli bernoulli_ bitwise_and bitwise_or broadcast_tensors ceil clamp_max clamp_min
    clone copy cos count_nonzero cumsum diff div div_ dropout_ elu empty_like equal erf exp expand_as
    feature_dropout fill fill_ flip floor_divide_ fmax fmod frac full gelu gt hardsigmoid hardswish hardtanh im2col
    index_add index_copy index_fill index_put index_select isfinite isnan leaky_relu leaky_relu_
    lift_fresh linalg_vector_norm linspace log log1p log_softmax logical_and logical_not logical_or logit logsumexp
    lt le masked_fill_ masked_scatter masked_select max_pool2d maximum mean meshgrid min minimum mish movedim
    mul mul_ nan_to_num ne neg new_ones norm not numel numpy_T one_hot ones_like pad pixel_shuffle pow prod rand
    rand_like randn randn_like reciprocal remainder repeat repeat_interleave reshape_as resolve_conj resolve_neg rsqrt
    rsub scalar_tensor scatter scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ searchsorted
    sigmoid sign silu silu_ sin softmax softplus sort sqrt square std sub sub_ sum swapaxes take
    take_along_dim tanh tensor_split tile topk tril triu true_divide unflatten unfold unsafe_chunk
    unsafe_split upsample_linear1d var view_as where zero_
    """.split()
]


def token_schedule(backbone: nn.Module, shape: tuple[int, int]) -> Optional[list[int]]:
    """Number of patch tokens of each layer for an image of ``shape`` (H, W) pixels; None for a stock backbone."""
    return backbone.token_schedule(shape) if hasattr(backbone, 'token_reducer') else None


def schedule_in_words(schedule: list[int]) -> str:
    """Format a ``token_schedule`` as tokens x layers, such as ``1600 x10, 784 x14``."""
    return ', '.join(f'{tokens} x{len(list(layers))}' for tokens, layers in groupby(schedule))


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one forward pass.

    Args:
        total: Multiply-adds of the whole model.
        by_module: Name of a submodule -> multiply-adds; ``''`` is the whole model.
        by_operator: Name of an operator -> multiply-adds.
        unsupported: Name of an operator that is not counted -> number of its calls.
    """

    total: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    unsupported: dict[str, int]


@torch.no_grad()
def count_flops(model: nn.Module, inputs: Union[Tensor, tuple[Tensor, ...]]) -> FlopCount:
    """Count the multiply-adds of ``model(*inputs)`` in eval mode; ``model`` stays as it is.

    Args:
        model: Any module that takes tensors. It runs once, on ``inputs``.
        inputs: A tensor, or a tuple of all positional arguments.
    """
    # fvcore does not remove its hooks when a forward pass fails, so it gets a copy that shares all tensors.
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    replica = copy.deepcopy(model, tensors)
    replica.eval()  # its own statement: eval() of mmseg's VisionTransformer returns None
    # A traced model must return tensors.
    replica.register_forward_hook(
        lambda module, args, out: out.tensors() if isinstance(out, (ReducedOutputs, OpenOutputs)) else None
    )
    analysis = FlopCountAnalysis(replica, inputs)
    analysis.set_op_handle(**_HANDLERS, **dict.fromkeys(_NEGLIGIBLE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    # fvcore counts some operators in numpy numbers.
    counts = {
        name: {operator: int(n) for operator, n in operators.items()}
        for name, operators in analysis.by_module_and_operator().items()
    }
    return FlopCount(
        total=sum(counts[''].values()),
        by_module={name: sum(operators.values()) for name, operators in counts.items()},
        by_operator=counts[''],
        unsupported=dict(analysis.unsupported_ops()),
    )
