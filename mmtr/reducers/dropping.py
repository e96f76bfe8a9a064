"""What methods share that drop tokens and give their positions a token back at the end."""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept, others
from mmtr.ops.matching import gather_tokens
from mmtr.settings import Choice
from mmtr.tokens import Tokens

from .restoring import RestoringReducer

#: What a dropped position may get.
RESTORE_DROPPED = Choice('last', 'copy', 'residual')


class _Drop(NamedTuple):
    """What giving tokens back needs to know of one time that they left.

    Args:
        order: (B, N) slot, among the kept ones followed by those that left, of each token that there was.
        own: (B, G, C) what those that left have of their own.
        anchors: (B, G) slot, among the kept ones, of the token whose value is added to it; None: it is all they have.
    """

    order: Tensor
    own: Tensor
    anchors: Optional[Tensor]

    def undo(self, x):
        """The tokens that there were, from those that are left: (B, M, C) -> (B, N, C)."""
        back = self.own if self.anchors is None else self.own + gather_tokens(x, self.anchors)
        kept = self.order.shape[1] - back.shape[1]  # behind these what the others were fused into
        return gather_tokens(torch.cat([x[:, :kept], back], 1), self.order)


class DropReducer(RestoringReducer):
    """A reducer that drops tokens, once or several times; its subclasses say which.

    Args:
        backbone: See ``TokenReducer``.
        restore: What a dropped position gets at the end: ``last``, the last value that its token had;
            ``copy``, the token that is nearest on the patch grid of those that were kept; ``residual``, its
            last value and the change since then of the token that was nearest of those that were kept then.
    """

    expansion = 'dropped'

    def _drop(self, tokens: Tokens, kept: Tensor, fused: Tensor = None) -> Tokens:
        """Drop all patch tokens but those at ``kept`` (B, M), slots in ascending order.

        Args:
            fused: (B, 1, C) what is left of the dropped ones, a token without a position.
        """
        places, size = self._index(tokens), tokens.size
        if size is None:
            size = torch.ones(places.shape, dtype=torch.float32, device=places.device)
        total = size.sum(1, keepdim=True)
        left, index, size = gather_tokens(tokens.patches, kept), places.gather(1, kept), size.gather(1, kept)
        if self.restoration == 'copy':
            dropped = nearest_kept(index, tokens.grid)
        else:
            gone = others(kept, tokens.patches.shape[1])
            own, anchors = gather_tokens(tokens.patches, gone), None
            if self.restoration == 'residual':
                anchors = nearest_kept(index, tokens.grid, places.gather(1, gone))
                own = own - gather_tokens(left, anchors)
            order = torch.cat([kept, gone], 1).argsort(dim=1)
            dropped = (*tokens.memo.get('dropped', ()), _Drop(order, own, anchors))
        parts = [tokens.prefix, left]
        if fused is not None:
            parts.append(fused)
            index = torch.cat([index, torch.full_like(index[:, :1], tokens.grid[0] * tokens.grid[1])], 1)
            size = torch.cat([size, total - size.sum(1, keepdim=True)], 1)
        return tokens.replace(x=torch.cat(parts, 1), index=index, size=size, memo={**tokens.memo, 'dropped': dropped})

    @staticmethod
    def _index(tokens):
        if tokens.index is not None:
            return tokens.index
        positions = torch.arange(tokens.grid[0] * tokens.grid[1], device=tokens.x.device)
        return positions.expand(tokens.x.shape[0], -1)

    def expand(self, tokens):
        """The nearest kept token."""
        return gather_tokens(tokens.patches, tokens.memo['dropped'])

    def _patches(self, tokens):
        if self.restoration == 'copy' or self.expansion not in tokens.memo:
            return super()._patches(tokens)
        x = tokens.patches
        for drop in reversed(tokens.memo['dropped']):
            x = drop.undo(x)
        return x

    def token_map(self, tokens):
        """See ``TokenReducer``; a kept token is a representative, and stands for those that it restores."""
        if tokens.index is None:
            return None
        positions = self._index(tokens.replace(index=None))
        group = positions.new_zeros(positions.shape[0], positions.shape[1] + 1)
        group = group.scatter(1, tokens.index, 1)[:, :-1]
        if self.restoration == 'last':
            return group, positions
        if self.restoration == 'copy':
            return group, tokens.index.gather(1, tokens.memo['dropped'])
        stands_for = tokens.index.unsqueeze(-1)
        for drop in reversed(tokens.memo['dropped']):
            stands_for = drop._replace(own=torch.zeros_like(drop.own[:, :, :1], dtype=torch.long)).undo(stands_for)
        return group, stands_for.squeeze(-1)
