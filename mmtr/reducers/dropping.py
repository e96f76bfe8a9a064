"""What methods share that drop tokens and give their positions a token back at the end."""
import torch
from torch import Tensor

from mmtr.ops.dropping import from_positions, nearest_kept, others
from mmtr.ops.matching import gather_tokens
from mmtr.tokens import Tokens

from .restoring import RestoringReducer


class DropReducer(RestoringReducer):
    """A reducer that drops tokens; its subclasses say which.

    Args:
        backbone: See ``TokenReducer``.
        restore: What a dropped position gets at the end: ``last``, the last value that its token had;
            ``copy``, the token that is nearest on the patch grid of those that were kept; ``residual``, its
            last value and the change of that nearest one since then.

    Raises:
        UserError: ``restore`` is none of these.
    """
    expansion = 'dropped'

    def __init__(self, backbone, restore):
        super().__init__(backbone, restore, ('last', 'copy', 'residual'))

    def _drop(self, tokens: Tokens, kept: Tensor, fused: Tensor = None) -> Tokens:
        """Drop all patch tokens but those at ``kept`` (B, M), slots in ascending order.

        Args:
            fused: (B, 1, C) what is left of the dropped ones, a token without a position.
        """
        index, size = self._index(tokens), tokens.size
        if size is None:
            size = torch.ones(index.shape, dtype=torch.float32, device=index.device)
        parts = [tokens.prefix, gather_tokens(tokens.patches, kept)]
        total = size.sum(1, keepdim=True)
        index, size = index.gather(1, kept), size.gather(1, kept)
        if fused is not None:
            parts.append(fused)
            index = torch.cat([index, torch.full_like(index[:, :1], tokens.grid[0] * tokens.grid[1])], 1)
            size = torch.cat([size, total - size.sum(1, keepdim=True)], 1)
        if self.restoration == 'last':
            gone = others(kept, tokens.patches.shape[1])
            aside = self._index(tokens).gather(1, gone), gather_tokens(tokens.patches, gone)
            dropped = (*tokens.memo.get('dropped', ()), aside)
        else:
            dropped = nearest_kept(index, tokens.grid)
        return self._reduced(tokens, tokens.replace(
            x=torch.cat(parts, 1), index=index, size=size, memo={**tokens.memo, 'dropped': dropped}))

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
        if self.restoration != 'last' or self.expansion not in tokens.memo:
            return super()._patches(tokens)
        index, x = zip((tokens.index, tokens.patches), *tokens.memo['dropped'])
        return from_positions(torch.cat(x, 1), torch.cat(index, 1), tokens.grid[0] * tokens.grid[1])

    def token_map(self, tokens):
        """See ``TokenReducer``; a kept token is a representative, and stands for those that it restores."""
        if tokens.index is None:
            return None
        positions = self._index(tokens.replace(index=None))
        group = positions.new_zeros(positions.shape[0], positions.shape[1] + 1)
        group = group.scatter(1, tokens.index, 1)[:, :-1]
        last = self.restoration == 'last'
        return group, positions if last else tokens.index.gather(1, tokens.memo['dropped'])
