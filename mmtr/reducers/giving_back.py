"""The settings of how, and where, patches get a token again."""

from mmtr.errors import UserError
from mmtr.settings import Choice

from .base import BackboneInfo

#: With m a reduced token where it was made and y the same one when it is needed, a patch x gets, by the way E of
#: ``Tokens.undo``, ``copy``: E(y), as the papers do; ``residual``: x + E(y - m), its own value and the change of what
#: stands for it.
RESTORE = Choice('copy', 'residual')
#: What a dropped patch may get: besides, ``last``, the last value that its token had.
RESTORE_DROPPED = Choice('last', 'copy', 'residual')
#: Where tokens of an output are given back: before the backbone's final norm; or after norm and head, which then run
#: on the reduced tokens, as logits.
RESTORE_AT = Choice('before_norm', 'after_head')


def check_after_head(backbone: BackboneInfo, restore: str, restore_at: str) -> None:
    """Raise a ``UserError`` for ``after_head`` with another ``restore`` than ``copy``, or in the windows of a Swin."""
    if restore_at == 'after_head' and restore != 'copy':
        raise UserError(
            "token_reduction.restore_at='after_head' gives back logits, which have no value of their "
            f"own for restore={restore!r}: set restore='copy'."
        )
    if restore_at == 'after_head' and backbone.in_windows:
        raise UserError(
            "token_reduction.restore_at='after_head' cannot work in a Swin, whose next stage needs all "
            "tokens: set restore_at='before_norm'."
        )
