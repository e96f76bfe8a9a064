"""Token clustering and reconstruction (Expediting, Liang et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows_columns import Assignment


def _windows(grid: tuple[int, int], clusters: tuple[int, int], window: int, device) -> tuple[Tensor, Tensor]:
    """Which centroids each token sees.

    Returns:
        For each row of tokens, a band of consecutive rows of centroids that holds all that it sees
        (H, band); and which of the band's centroids a token does not see (H, W, band * w).
    """
    radius = window // 2
    row, column = (torch.arange(n, device=device) * cells // n for n, cells in zip(grid, clusters))
    band = min(2 * radius + 1, clusters[0])
    rows = (row - radius).clamp(0, clusters[0] - band).unsqueeze(1) + torch.arange(band, device=device)
    far_rows = (rows - row.unsqueeze(1)).abs() > radius
    far_columns = (torch.arange(clusters[1], device=device) - column.unsqueeze(1)).abs() > radius
    return rows, torch.logical_or(far_rows[:, None, :, None], far_columns[None, :, None, :]).flatten(2)


def cluster_tokens(
    x: Tensor, grid: tuple[int, int], clusters: tuple[int, int], n_iters: int, window: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Token clustering layer: soft k-means that looks at near centroids only.

    A row of tokens is compared with the rows of centroids in its window, a batch of small products
    in place of all tokens with all centroids. In float32 also under autocast. Which token goes
    where carries no gradient, the mean over the tokens does.

    Args:
        x: (B, H * W, C).
        grid: (H, W).
        clusters: (h, w), at most ``grid``.
        n_iters: Rounds, at least 1.
        window: Side, in cells of the (h, w) grid, of the square around its own cell in which a token
            sees centroids; odd.
        temperature: Factor of the squared distances.

    Returns:
        The centroids (B, h * w, C) in raster order, and the sum of the shares of the tokens in each
        (B, h * w), float32.
    """
    rows, far = _windows(grid, clusters, window, x.device)
    tokens = x.float().unflatten(1, grid)
    # Distances are small beside the mean that all tokens share: without it they keep more digits.
    centre = tokens.detach().mean((1, 2), keepdim=True)
    tokens = tokens - centre
    fixed = tokens.detach()
    with torch.autocast(x.device.type, enabled=False):
        centroids = F.adaptive_avg_pool2d(fixed.permute(0, 3, 1, 2), clusters).permute(0, 2, 3, 1)
        for _ in range(n_iters):
            seen = centroids.detach()
            norms = seen.square().sum(-1)[:, rows].flatten(2).unsqueeze(2)
            # The distance less the token's own norm, which is the same for all that the softmax compares.
            distance = norms - 2 * (fixed @ seen[:, rows].flatten(2, 3).transpose(2, 3))
            share = (-temperature * distance).masked_fill(far, -torch.inf).softmax(-1)
            size = _sum_bands(share.sum(2, keepdim=True).transpose(2, 3), rows, clusters)
            total = _sum_bands(share.transpose(2, 3) @ tokens, rows, clusters)
            centroids = total / size.clamp_min(torch.finfo(size.dtype).tiny)
    return (centroids + centre).flatten(1, 2).to(x.dtype), size.flatten(1)


def _sum_bands(parts: Tensor, rows: Tensor, clusters: tuple[int, int]) -> Tensor:
    """Add what each row of tokens gives the centroids of its band: (B, H, band * w, C) -> (B, h, w, C)."""
    parts = parts.unflatten(2, (-1, clusters[1])).flatten(1, 2)
    return parts.new_zeros(parts.shape[0], *clusters, parts.shape[-1]).index_add(1, rows.flatten(), parts)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, at least 0: (..., N, C) and (..., M, C) -> (..., N, M)."""
    norms = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
    # Rounding can make the difference of two large numbers negative.
    return (norms - 2 * (a @ b.transpose(-1, -2))).clamp_min(0)


def reconstruction(x: Tensor, centroids: Tensor, k: int, temperature: float, normalize: str) -> Assignment:
    """Token reconstruction layer: the share of each cluster in each token.

    In float32 also under autocast, and without gradient.

    Args:
        x: (B, N, C) tokens before they were clustered.
        centroids: (B, M, C) as they were then.
        k: Clusters that a token is restored from, the nearest ones; all if there are fewer.
        temperature: Factor of the squared distances.
        normalize: What a token's shares have: ``l2`` a Euclidean norm of 1, ``l1`` a sum of 1.
    """
    x, centroids = x.detach().float(), centroids.detach().float()
    centre = x.mean(1, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):
        distance = squared_distance(x - centre, centroids - centre)
    distance, index = distance.topk(min(k, distance.shape[2]), dim=2, largest=False)
    # Beside the nearest: normalised the same, but the shares of far clusters cannot all underflow to 0.
    weights = F.normalize((temperature * (distance[..., :1] - distance)).exp(), p=float(normalize[1]), dim=2)
    return Assignment(weights=weights.new_zeros(*x.shape[:2], centroids.shape[1]).scatter(2, index, weights))
