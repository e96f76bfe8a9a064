"""Random selection of tokens with a straight-through gradient, and functions on selected tokens only (DAR)."""

from typing import Callable

import torch
from torch import Tensor


def straight_through(logits: Tensor, temperature: float) -> Tensor:
    """Draw 1 with probability sigmoid(logits), else 0, in float32, with a straight-through Gumbel gradient.

    The value is whether y = sigmoid((logits + g1 - g2) / temperature), with Gumbel noise g, is above 1/2; the gradient
    is that of y.
    """
    logits = logits.float()
    # The difference of two Gumbel variables is logistic.
    soft = ((logits + torch.rand_like(logits).logit(1e-7)) / temperature).sigmoid()
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def on_selected(function: Callable[[Tensor], Tensor], x: Tensor, selected: Tensor) -> Tensor:
    """Apply a function to the selected tokens; the output is 0 for the others: (B, N, C) -> (B, N, C).

    The selected tokens of all images are one batch (M, C) without padding; their number may differ between images.

    Args:
        function: Maps tokens (M, C) -> (M, C), each on its own.
        x: (B, N, C) tokens.
        selected: (B, N) bool.
    """
    index = selected.flatten().nonzero().squeeze(1)
    out = function(x.flatten(0, 1)[index])
    return out.new_zeros(x.shape[0] * x.shape[1], out.shape[1]).index_copy(0, index, out).unflatten(0, x.shape[:2])
