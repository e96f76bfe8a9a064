"""What methods share that give every patch a token again: from what stands for it, copied or as a change."""

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.settings import Choice
from mmtr.tokens import Tokens

from .base import TokenReducer

#: The two that every method has.
RESTORE = Choice('copy', 'residual')
#: Where tokens are given back for an output.
RESTORE_AT = Choice('before_norm', 'after_head')


class RestoringReducer(TokenReducer):
    """A reducer that knows which tokens stand for each patch; its subclasses say how.

    With m a reduced token where it was made and y the same one when it is needed, a patch x gets

    - ``copy``: E(y), as the papers do, with E the linear map ``expand``;
    - ``residual``: x + E(y - m), its own value and the change of what stands for it.

    A method may reduce several times: the residual x - E(m) of all the times is one tensor,
    ``memo['residual']``, (B, H * W, C).

    Args:
        backbone: See ``TokenReducer``.
        restore: ``copy`` or ``residual``, or what else a subclass declares.
        restore_at: ``before_norm``: tokens of an output are given back before the backbone's final norm;
            ``after_head``: norm and head run on the reduced tokens, and E gives back the logits.

    Raises:
        UserError: ``after_head`` with another ``restore`` than ``copy``, or in the windows of a Swin.
    """

    #: Key of ``Tokens.memo`` under which ``expand`` finds what it needs; there if anything was reduced.
    expansion: str
    #: Tokens are restored after layer ``stop - 1``; None: for an output only.
    stop = None

    def __init__(self, backbone, restore, restore_at='before_norm'):
        super().__init__(backbone)
        if restore_at == 'after_head' and restore != 'copy':
            raise UserError(
                "token_reduction.restore_at='after_head' gives back logits, which have no value of their "
                f"own for restore={restore!r}: set restore='copy'."
            )
        if restore_at == 'after_head' and backbone.stage is not None:
            raise UserError(
                "token_reduction.restore_at='after_head' cannot work in a Swin, whose next stage needs all "
                "tokens: set restore_at='before_norm'."
            )
        self.restoration, self.restore_at = restore, restore_at

    def expand(self, tokens: Tokens) -> Tensor:
        """E: what stands for each patch, (B, H * W, C)."""
        raise NotImplementedError

    def _reduced(self, before: Tokens, after: Tokens) -> Tokens:
        """``after``, the tokens just reduced, with what restoring them will need of those ``before``."""
        if self.restoration != 'residual':
            return after
        residual = self._patches(before) - self.expand(after)
        return after.replace(memo={**after.memo, 'residual': residual})

    def _patches(self, tokens):
        if self.expansion not in tokens.memo:
            return tokens.patches
        x = self.expand(tokens)
        return x + tokens.memo['residual'] if 'residual' in tokens.memo else x

    def restore(self, tokens):
        """All patch tokens in raster order."""
        if self.expansion not in tokens.memo:
            return tokens
        memo = {key: value for key, value in tokens.memo.items() if key not in (self.expansion, 'residual')}
        x = torch.cat([tokens.prefix, self._patches(tokens)], 1)
        return tokens.replace(x=x, index=None, size=None, memo=memo)

    def give_back(self, logits, tokens):
        """See ``TokenReducer``."""
        return self.expand(tokens.replace(x=logits, num_prefix=0)) if self.expansion in tokens.memo else logits

    def after_layer(self, i, tokens):
        """Restore at the end of the span, if there is one."""
        return tokens if self.stop is None or i != self.stop - 1 else self.restore(tokens)
