"""Multi-scale deformable attention on a CPU, as one ``embedding_bag`` of weighted rows for each query and head."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _bags(centres, offsets, weights, sizes, starts, step):
    # Rows of the values that the queries of one image sample (Q * heads, 4 * levels * points), and their weights.
    place = (centres + offsets).flatten(1)
    # NaN is no valid row index; the weight is NaN, and so is the output.
    corner = place.detach().floor().nan_to_num()
    inner = place - corner
    corners = torch.stack([corner, corner + 1])
    # Samples beyond the border are zeros.
    parts = torch.stack([1 - inner, inner]) * ((corners >= 0) & (corners < sizes))
    x, y = corners.clamp_(min=0).minimum(sizes - 1).unflatten(2, (-1, 2)).unbind(-1)
    parts_x, parts_y = parts.unflatten(2, (-1, 2)).unbind(-1)
    rows = torch.add(starts, (x + (y * sizes[::2])[:, None]).int(), alpha=step)
    parts = parts_x * (parts_y * weights.flatten(1))[:, None]
    bags = weights.shape[0] * weights.shape[1]
    return (t.view(4, bags, -1).transpose(0, 1).flatten(1) for t in (rows, parts))


def deformable_attention(
    value: Tensor, shapes: Tensor, starts: Tensor, centres: Tensor, offsets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum weighted bilinear samples of several maps (Deformable DETR, arXiv 2010.04159, Eq. 3), padded with zeros.

    Args:
        value: (B, N, heads or 1, C) values of all maps, flattened one after the other; 1: the same for all heads.
        shapes: (levels, 2) height and width of each map.
        starts: (levels, ) index of the first value of each map.
        centres: (B, Q, levels, 2) reference point of each query, x and y in 0 ... 1.
        offsets: (B, Q, heads, levels, points, 2) sampling offsets from it, in pixels of each map.
        weights: (B, Q, heads, levels, points) attention weight of each sampling point.

    Returns:
        The sums (B, Q, heads, C), and the sum of the weights inside the maps (B, Q, heads, 1).
    """
    num_heads, num_levels, num_points = weights.shape[2:]

    def each(of_level):
        # Repeat a value of each level for every coordinate that a query samples.
        return of_level.view(1, num_levels, 1, -1).expand(num_heads, -1, num_points, -1)

    sizes = shapes.flip(1)
    step = value.shape[2]
    heads = torch.arange(num_heads, device=value.device) % step
    starts = (each(starts) * step + heads.view(-1, 1, 1, 1)).flatten().int()
    # Repeated for the points, so that the sum with the offsets broadcasts over heads alone, and reads contiguous rows.
    centres = (centres * sizes - 0.5).unsqueeze(3).expand(-1, -1, -1, num_points, -1).flatten(2).unsqueeze(2)
    sizes = each(sizes).flatten().to(offsets)
    sums, inside = [], []
    for rows, *looks in zip(value.flatten(1, 2), centres, offsets.flatten(3), weights):
        index, parts = _bags(*looks, sizes, starts, step)
        sums.append(F.embedding_bag(index, rows, mode='sum', per_sample_weights=parts))
        inside.append(parts.sum(1, keepdim=True))
    return tuple(torch.stack(each).unflatten(1, (-1, num_heads)) for each in (sums, inside))
