"""Tokens that merge by a matching that their memo holds."""

from typing import Union

from mmtr.ops.bipartite import merge
from mmtr.tokens import Tokens
from mmtr.undo import Merged

from .residual_code import ResidualCode


def merged_as_noted(tokens: Tokens, restore: Union[str, ResidualCode]) -> Tokens:
    """Merge patch tokens by ``memo['matching']``, if there is one; ``restore``: see ``Tokens.reduced``."""
    if 'matching' not in tokens.memo:
        return tokens
    matching = tokens.memo['matching']
    x, size = merge(tokens.patches, matching, tokens.size)
    return tokens.reduced(x, Merged(matching.slots()), tokens.positions.gather(1, matching.kept), size, restore)
