"""Settings of how and where tokens are restored: ``restore`` and ``restore_at``."""

from mmtr.errors import UserError
from mmtr.settings import Choice

from .base import BackboneInfo

#: Value of a restored patch: ``copy``, E(y), as in the papers; ``residual``, x + E(y - m), its own value plus the
#: change of its representative. x is the patch token before the reduction, m the reduced tokens right after it, y the
#: reduced tokens when they are restored, and E the ``expand`` of ``Tokens.undo``. ``learned``: ``residual``, plus what
#: a trained ``ResidualCode`` makes of x - E(m).
RESTORE = Choice('copy', 'residual', 'learned')
#: Value of a restored patch that was dropped: ``copy`` or ``residual`` as in ``RESTORE``, or ``last``, the last value
#: of its token.
RESTORE_DROPPED = Choice('last', 'copy', 'residual')
#: Where tokens are restored: before the backbone's final norm; or after norm and head, which then run on the reduced
#: tokens, so that logits are restored.
RESTORE_AT = Choice('before_norm', 'after_head')


def check_after_head(backbone: BackboneInfo, restore: str, restore_at: str) -> None:
    """Raise a ``UserError`` if ``restore_at`` is ``after_head`` and ``restore`` is not ``copy``, or in stages."""
    if restore_at == 'after_head' and restore != 'copy':
        raise UserError(
            "token_reduction.restore_at='after_head' gives back logits, which have no value of their "
            f"own for restore={restore!r}: set restore='copy'."
        )
    if restore_at == 'after_head' and backbone.needs_grid:
        raise UserError(
            "token_reduction.restore_at='after_head' cannot work in a backbone of stages: the next stage needs all "
            "tokens: set restore_at='before_norm'."
        )
