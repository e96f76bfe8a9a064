"""What methods share whose tokens merge for good: where each patch went."""

import torch
from torch import Tensor

from mmtr.ops.matching import gather_tokens
from mmtr.tokens import Tokens

from .restoring import RestoringReducer


class MergingReducer(RestoringReducer):
    """Keeps in ``memo['slots']`` which token stands for each patch, (B, H * W)."""

    expansion = 'slots'

    def merged(self, tokens: Tokens, x: Tensor, size: Tensor, kept: Tensor, slots: Tensor) -> Tokens:
        """``tokens`` after its N patch tokens have merged into M.

        Args:
            x: (B, M, C) what they merged into.
            size: (B, M) how many original patches each one stands for.
            kept: (B, M) which of the N each one was.
            slots: (B, N) which of the M stands for each.
        """
        before = tokens.memo.get('slots')
        return self._reduced(
            tokens,
            tokens.replace(
                x=torch.cat([tokens.prefix, x], 1),
                size=size,
                index=kept if tokens.index is None else tokens.index.gather(1, kept),
                memo={**tokens.memo, 'slots': slots if before is None else slots.gather(1, before)},
            ),
        )

    def expand(self, tokens):
        """The token that each patch merged into."""
        return gather_tokens(tokens.patches, tokens.memo['slots'])

    def token_map(self, tokens):
        """See ``TokenReducer``; representative are the patches that others merged into or that are alone."""
        if 'slots' not in tokens.memo:
            return None
        stands_for = tokens.index.gather(1, tokens.memo['slots'])
        own = torch.arange(stands_for.shape[1], device=stands_for.device)
        return (stands_for == own).long(), stands_for
