"""Choosing some tokens of each image, and computing on these alone."""

from typing import Callable

import torch
from torch import Tensor


def straight_through(logits: Tensor, temperature: float) -> Tensor:
    """Random choice: 1 with probability sigmoid(logits), else 0; of the shape of ``logits``, in float32.

    y = sigmoid((logits + g1 - g2) / temperature), with Gumbel noise g, is cut at 1/2, and has its gradient.
    """
    logits = logits.float()
    # The difference of two Gumbel variables is logistic.
    soft = ((logits + torch.rand_like(logits).logit(1e-7)) / temperature).sigmoid()
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def on_selected(function: Callable[[Tensor], Tensor], x: Tensor, selected: Tensor) -> Tensor:
    """``function`` of the selected tokens, 0 for the others: (B, N, C) -> (B, N, C).

    The selected tokens of all images run as one (M, C), without padding, however many each image has.

    Args:
        function: Any (M, C) -> (M, C) that treats tokens one by one.
        x: (B, N, C).
        selected: (B, N), boolean.
    """
    index = selected.flatten().nonzero().squeeze(1)
    out = function(x.flatten(0, 1)[index])
    return out.new_zeros(x.shape[0] * x.shape[1], out.shape[1]).index_copy(0, index, out).unflatten(0, x.shape[:2])
