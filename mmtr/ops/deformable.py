"""Deformable attention on a CPU: a bag of weighted rows for each query and head."""
import torch
import torch.nn.functional as F
from torch import Tensor

#: So many queries at a time: what is made for them stays in the cache.
PIECE = 1024


def _bags(centres, offsets, weights, sizes, starts):
    # Rows of the values that the queries of one image see (Q * heads, 4 * levels * points), and how much of each.
    place = (centres + offsets).flatten(1)
    corner = place.detach().floor()
    inner = place - corner
    corners = torch.stack([corner, corner + 1])
    # Beyond the border there are zeros.
    parts = torch.stack([1 - inner, inner]) * ((corners >= 0) & (corners < sizes))
    # fmax, for a NaN is no row: the output is NaN by its part.
    x, y = corners.fmax(corners.new_zeros(())).minimum(sizes - 1).unflatten(2, (-1, 2)).unbind(-1)
    parts_x, parts_y = parts.unflatten(2, (-1, 2)).unbind(-1)
    rows = (x + (y * sizes[::2])[:, None]).int() + starts
    parts = parts_x * (parts_y * weights.flatten(1))[:, None]
    bags = weights.shape[0] * weights.shape[1]
    return (t.view(4, bags, -1).transpose(0, 1).flatten(1) for t in (rows, parts))


def deformable_attention(value: Tensor, shapes: Tensor, starts: Tensor, centres: Tensor, offsets: Tensor,
                         weights: Tensor) -> Tensor:
    """Sum of bilinear samples of several maps (Deformable DETR, arXiv 2010.04159, Eq. 3); zeros lie around a map.

    Args:
        value: The maps in a row, (B, N, heads, C).
        shapes: (H, W) of each, (levels, 2).
        starts: Where each begins in the row, (levels, ).
        centres: Where each query looks, (B, Q, levels, 2), as x and y in 0 ... 1.
        offsets: From there, in pixels of each map, (B, Q, heads, levels, points, 2).
        weights: Of what it sees there, (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * C).
    """
    batch, length, num_heads, channels = value.shape
    num_levels, num_points = weights.shape[3:]

    def each(of_level):
        # One number for every number of a query.
        return of_level.view(1, num_levels, 1, -1).expand(num_heads, -1, num_points, -1)

    sizes = shapes.flip(1)
    heads = torch.arange(0, num_heads * length, length, device=value.device).view(-1, 1, 1, 1)
    starts = (each(starts) + heads).flatten().int()
    # Repeated for the points, so that what is added and broadcast over heads lies in a row.
    centres = (centres * sizes - 0.5).unsqueeze(3).expand(-1, -1, -1, num_points, -1).flatten(2).unsqueeze(2)
    sizes = each(sizes).flatten().to(offsets)
    sums = []
    for rows, of_image in zip(value.transpose(1, 2).flatten(1, 2), zip(centres, offsets.flatten(3), weights)):
        for piece in zip(*(t.split(PIECE) for t in of_image)):
            index, part = _bags(*piece, sizes, starts)
            sums.append(F.embedding_bag(index, rows, mode='sum', per_sample_weights=part))
    return torch.cat(sums).view(batch, -1, num_heads * channels)
