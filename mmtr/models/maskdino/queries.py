"""The first queries of the decoder, selected from the encoded maps, and their first boxes, from predicted masks."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from mmdet.models.layers import inverse_sigmoid
from mmengine.model import BaseModule
from torch import Tensor, nn

#: Sources of the decoder's first boxes: 'no': the box head; others: predicted masks, see ``boxes_of_masks``.
INITIAL_BOXES = ('no', 'mask2box', 'bitmask')


def grid_proposals(shapes: Sequence[tuple[int, int]], device: Optional[torch.device] = None) -> tuple[Tensor, Tensor]:
    """Make a box proposal around every place of several maps.

    Proposals of level i have a width and height of 0.05 * 2^i of the image.

    Args:
        shapes: (height, width) of each map.
        device: Device of the boxes.

    Returns:
        Boxes (1, N, 4), centre and size before the sigmoid, and a mask (1, N, 1), False for those at the border.
    """
    proposals = []
    for i, (height, width) in enumerate(shapes):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        y, x = torch.meshgrid(y, x, indexing='ij')
        size = torch.full_like(x, 0.05 * 2**i)
        proposals.append(torch.stack((x, y, size, size), -1).flatten(0, 1))
    proposals = torch.cat(proposals).unsqueeze(0)
    kept = ((proposals > 0.01) & (proposals < 0.99)).all(-1, keepdim=True)
    return proposals.logit().masked_fill(~kept, torch.inf), kept


class QuerySelection(BaseModule):
    """Selects the places of the encoded maps with the highest class score as queries ("Unified query selection").

    Args:
        channels: Number of channels of the maps, C.
        num_queries: Number of queries, Q.
    """

    def __init__(self, channels: int, num_queries: int):
        super().__init__()
        self.num_queries = num_queries
        self.linear = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        memory: Tensor,
        shapes: Tensor,
        class_embed: Callable[[Tensor], Tensor],
        bbox_embed: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Select the queries.

        Args:
            memory: (B, N, C) encoded maps, flattened one after the other.
            shapes: (L, 2) height and width of each map.
            class_embed: Class head.
            bbox_embed: Box head.

        Returns:
            Queries (B, Q, C), and their boxes (B, Q, 4) before the sigmoid.
        """
        proposals, kept = grid_proposals(shapes.tolist(), memory.device)
        memory = self.norm(self.linear(memory.masked_fill(~kept, 0.0)))
        scores = class_embed(memory).amax(-1)
        best = scores.topk(min(self.num_queries, scores.shape[1]), 1).indices
        chosen = memory.gather(1, best.unsqueeze(2).expand(-1, -1, memory.shape[2]))
        return chosen, bbox_embed(chosen) + proposals[0, best]


def boxes_of_masks(logits: Tensor, kind: str) -> Tensor:
    """Compute the boxes of masks ("Mask-enhanced anchor box initialization").

    An empty mask has a box of size 0, as in the released code: at the upper left corner for ``bitmask``, at the lower
    right one for ``mask2box``.

    Args:
        logits: (B, Q, H, W) mask logits; a mask is where they are above 0.
        kind: ``bitmask``, boxes include the last pixel of the mask; ``mask2box``, they end at its index.

    Returns:
        (B, Q, 4) boxes, centre and size before the sigmoid.
    """
    exact = kind == 'bitmask'
    masks = logits > 0

    def extent(line):
        size = line.shape[-1]
        line = line.byte()  # argmax: the first of the highest
        first, last = line.argmax(-1), size - 1 - line.flip(-1).argmax(-1)
        return first / size, (last + exact) / size

    (left, right), (top, bottom) = extent(masks.any(-2)), extent(masks.any(-1))
    boxes = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), -1)
    nothing = boxes.new_tensor((0, 0, 0, 0) if exact else (1, 1, 0, 0))
    return inverse_sigmoid(torch.where(masks.flatten(2).any(-1, keepdim=True), boxes, nothing))
