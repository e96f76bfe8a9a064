"""What methods share that merge more tokens in one image than in another: padding, which attention masks."""

from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.ops.matching import merge_into
from mmtr.tokens import Tokens
from mmtr.undo import Merged

from .base import BackboneInfo, TokenReducer
from .residual_code import restoration


class MergingReducer(TokenReducer):
    """Base class of methods by which the number of tokens left depends on the image.

    In a batch, shorter sequences are padded and attention masks the padding, so that an image gets the same output in
    any batch. A subclass calls ``merged`` at one of the moments between attention.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        restore: Value of a restored patch, one of ``RESTORE``.
    """

    fixed_count = False

    def __init__(self, backbone: BackboneInfo, restore: str):
        super().__init__(backbone)
        self.restoration = restoration(restore, backbone)

    @staticmethod
    def valid(tokens: Tokens) -> Tensor:
        """Say which patch tokens are no padding: (B, N) bool."""
        if tokens.size is None:
            return torch.ones(tokens.patches.shape[:2], dtype=torch.bool, device=tokens.x.device)
        return tokens.size > 0

    def merged(self, tokens: Tokens, into: Tensor, order: Optional[Tensor] = None, weighted: bool = True) -> Tokens:
        """Merge each patch token into its target, and note the padding; see ``merge_into``."""
        x, size, kept, slots = merge_into(tokens.patches, into, tokens.size, order, weighted)
        tokens = tokens.reduced(x, Merged(slots), tokens.positions.gather(1, kept), size, self.restoration)
        padding = size == 0
        # Without padding, attention needs no bias, and more kernels can run it.
        return tokens.remember(bias=torch.where(padding, -torch.inf, 0.0) if padding.any() else None)

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run the attention of the layer, with padding masked."""
        bias = tokens.memo.get('bias')
        if bias is None:
            return attn.branch(x)
        # Queries may have joined the prefix tokens since.
        return attn.attend(*attn.qkv(x), F.pad(bias, (tokens.num_prefix, 0))[:, None, None])
