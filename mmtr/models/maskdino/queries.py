"""Where the decoder starts: the best places of the encoded maps, and the boxes of their masks."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from mmdet.models.layers import inverse_sigmoid
from mmengine.model import BaseModule
from torch import Tensor, nn

#: What the decoder's boxes start from: 'no' is the box head, the others are the predicted masks.
INITIAL_BOXES = ('no', 'mask2box', 'bitmask')


def grid_proposals(shapes: Sequence[tuple[int, int]], device: Optional[torch.device] = None) -> tuple[Tensor, Tensor]:
    """A box around every place of maps of these shapes: (1, N, 4) before the sigmoid, and (1, N, 1) which are kept.

    In level i it is 0.05 * 2^i of the image wide and high; those at the border are not kept.
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
    """The places of the encoded maps whose best class scores highest become queries ("Unified query selection")."""

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
        """Memory (B, N, C) of maps of ``shapes`` -> queries (B, Q, C) and boxes (B, Q, 4) before the sigmoid."""
        proposals, kept = grid_proposals(shapes.tolist(), memory.device)
        memory = self.norm(self.linear(memory.masked_fill(~kept, 0.0)))
        scores = class_embed(memory).amax(-1)
        best = scores.topk(min(self.num_queries, scores.shape[1]), 1).indices
        chosen = memory.gather(1, best.unsqueeze(2).expand(-1, -1, memory.shape[2]))
        return chosen, bbox_embed(chosen) + proposals[0, best]


def boxes_of_masks(logits: Tensor, kind: str) -> Tensor:
    """The boxes (B, Q, 4) of masks (B, Q, H, W) where they are above 0, before the sigmoid ("Mask-enhanced anchor box
    initialization").

    ``kind``: 'bitmask' counts the last pixel in, 'mask2box' ends at its index. An empty mask has a box of no size
    in a corner: at the start for the one, at the end for the other, as in the release.
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
