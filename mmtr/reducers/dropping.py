"""Dropping tokens, so that their positions get a token back at the end."""

from typing import Optional

import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept, others
from mmtr.ops.matching import gather_tokens
from mmtr.tokens import Tokens
from mmtr.undo import Dropped, Forgotten, Merged


def drop(tokens: Tokens, kept: Tensor, restore: str, fused: Optional[Tensor] = None) -> Tokens:
    """Drop all patch tokens but some.

    Args:
        kept: (B, M) slots of those that stay, in ascending order.
        restore: What a dropped position gets at the end: ``last``, the last value that its token had;
            ``copy``, the token that is nearest on the patch grid of those that were kept; ``residual``, its
            last value and the change since then of the token that was nearest of those that were kept then.
        fused: (B, 1, C) what is left of the dropped ones, a token without a position.
    """
    places, size = tokens.positions, tokens.size
    if size is None:
        size = torch.ones(places.shape, dtype=torch.float32, device=places.device)
    total = size.sum(1, keepdim=True)
    left, index, size = gather_tokens(tokens.patches, kept), places.gather(1, kept), size.gather(1, kept)
    if not tokens.gives_back:
        undo = Forgotten(index, tokens.grid)
    elif restore == 'copy':
        # Of all patches, whatever left before.
        undo = Merged(nearest_kept(index, tokens.grid))
    else:
        gone = others(kept, tokens.patches.shape[1])
        own, gone_from, anchors = gather_tokens(tokens.patches, gone), places.gather(1, gone), None
        if restore == 'residual':
            anchors = nearest_kept(index, tokens.grid, gone_from)
            own = own - gather_tokens(left, anchors)
        step = Dropped(torch.cat([kept, gone], 1).argsort(dim=1), own, gone_from, anchors)
        undo = step if tokens.undo is None else tokens.undo.then(step)
    parts = [tokens.prefix, left]
    if fused is not None:
        parts.append(fused)
        index = torch.cat([index, torch.full_like(index[:, :1], tokens.grid[0] * tokens.grid[1])], 1)
        size = torch.cat([size, total - size.sum(1, keepdim=True)], 1)
    return tokens.replace(x=torch.cat(parts, 1), index=index, size=size, undo=undo)
