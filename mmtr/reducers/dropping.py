"""Dropping of tokens with an undo step that restores them."""

from typing import Optional

import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept, others
from mmtr.ops.matching import gather_tokens
from mmtr.tokens import Tokens
from mmtr.undo import Dropped, Forgotten, Nearest


def drop(tokens: Tokens, kept: Tensor, restore: str, fused: Optional[Tensor] = None) -> Tokens:
    """Drop all patch tokens but those in ``kept``.

    Args:
        tokens: N patch tokens.
        kept: (B, M) indices of the patch tokens that are kept, ascending.
        restore: Value that a dropped patch gets when tokens are restored: ``last``, the last value of its token;
            ``copy``, a copy of the kept token nearest on the patch grid; ``residual``, its last value plus the change,
            since then, of the token that was the nearest kept one.
        fused: (B, 1, C) token that the dropped ones are fused into, without a position; None: there is none.
    """
    places, size = tokens.positions, tokens.size
    if size is None:
        size = torch.ones(places.shape, dtype=torch.float32, device=places.device)
    total = size.sum(1, keepdim=True)
    left, index, size = gather_tokens(tokens.patches, kept), places.gather(1, kept), size.gather(1, kept)
    if fused is not None:
        index = torch.cat([index, torch.full_like(index[:, :1], tokens.grid[0] * tokens.grid[1])], 1)
        size = torch.cat([size, total - size.sum(1, keepdim=True)], 1)
    if not tokens.gives_back:
        undo = Forgotten(index, tokens.grid)
    elif restore == 'copy':
        # For all patches: this replaces the undo steps of earlier drops.
        undo = Nearest(nearest_kept(index, tokens.grid))
    else:
        gone = others(kept, tokens.patches.shape[1])
        own, gone_from, anchors = gather_tokens(tokens.patches, gone), places.gather(1, gone), None
        if restore == 'residual':
            anchors = nearest_kept(index, tokens.grid, gone_from)
            own = own - gather_tokens(left, anchors)
        step = Dropped(torch.cat([kept, gone], 1).argsort(dim=1), own, gone_from, anchors)
        undo = step if tokens.undo is None else tokens.undo.then(step)
    parts = [tokens.prefix, left] + ([] if fused is None else [fused])
    return tokens.replace(x=torch.cat(parts, 1), index=index, size=size, undo=undo)
