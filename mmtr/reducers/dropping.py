"""What methods share that drop tokens and give their positions a token back at the end."""
import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept, put_tokens
from mmtr.ops.matching import gather_tokens
from mmtr.tokens import Tokens

from .base import TokenReducer, check_choice


class DropReducer(TokenReducer):
    """A reducer that drops tokens; its subclasses say which.

    Args:
        backbone: See ``TokenReducer``.
        fill: What a dropped position gets at the end: the ``last`` value that its token had, or the token
            that is ``nearest`` on the patch grid of those that were kept.

    Raises:
        UserError: ``fill`` is neither.
    """

    def __init__(self, backbone, fill):
        super().__init__(backbone)
        check_choice('fill', fill, ('last', 'nearest'))
        self.fill = fill

    def _drop(self, tokens: Tokens, kept: Tensor, fused: Tensor = None) -> Tokens:
        """Drop all patch tokens but those at ``kept`` (B, M), slots in ascending order.

        Args:
            fused: (B, 1, C) what is left of the dropped ones, a token without a position.
        """
        index, size = self._index(tokens), tokens.size
        if size is None:
            size = torch.ones(index.shape, dtype=torch.float32, device=index.device)
        memo = {**tokens.memo, 'last': self._last(tokens)} if self.fill == 'last' else tokens.memo
        parts = [tokens.prefix, gather_tokens(tokens.patches, kept)]
        total = size.sum(1, keepdim=True)
        index, size = index.gather(1, kept), size.gather(1, kept)
        if fused is not None:
            parts.append(fused)
            index = torch.cat([index, torch.full_like(index[:, :1], tokens.grid[0] * tokens.grid[1])], 1)
            size = torch.cat([size, total - size.sum(1, keepdim=True)], 1)
        return tokens.replace(x=torch.cat(parts, 1), index=index, size=size, memo=memo)

    @staticmethod
    def _index(tokens):
        if tokens.index is not None:
            return tokens.index
        positions = torch.arange(tokens.grid[0] * tokens.grid[1], device=tokens.x.device)
        return positions.expand(tokens.x.shape[0], -1)

    @staticmethod
    def _last(tokens):
        """The latest value of every position, and one row more for tokens without a position."""
        x = tokens.patches
        if 'last' not in tokens.memo:
            return torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        return put_tokens(tokens.memo['last'], x, tokens.index)

    def restore(self, tokens):
        """Every position gets its own token, or what ``fill`` says."""
        if tokens.index is None:
            return tokens
        if self.fill == 'last':
            x = self._last(tokens)[:, :-1]
        else:
            x = gather_tokens(tokens.patches, nearest_kept(tokens.index, tokens.grid))
        memo = {key: value for key, value in tokens.memo.items() if key != 'last'}
        return tokens.replace(x=torch.cat([tokens.prefix, x], 1), index=None, size=None, memo=memo)

    def token_map(self, tokens):
        """See ``TokenReducer``; a kept token is a representative, and stands for those that it fills."""
        if tokens.index is None:
            return None
        positions = self._index(tokens.replace(index=None))
        group = positions.new_zeros(positions.shape[0], positions.shape[1] + 1)
        group = group.scatter(1, tokens.index, 1)[:, :-1]
        if self.fill == 'last':
            return group, positions
        return group, tokens.index.gather(1, nearest_kept(tokens.index, tokens.grid))
