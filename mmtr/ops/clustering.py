"""Token clustering and reconstruction (Expediting, Liang et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows_columns import Assignment


def _windows(grid: tuple[int, int], clusters: tuple[int, int], window: int, device) -> tuple[Tensor, Tensor]:
    """Find the centroids that each token is compared with.

    Returns:
        For each row of tokens, the consecutive rows of centroids (a band) that hold all centroids in its windows
        (H, band); and a mask of the band's centroids outside the window of each token (H, W, band * w).
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
    """Cluster tokens by soft k-means with near centroids only: the token clustering layer.

    A row of tokens is compared with the rows of centroids in its windows: a batch of small products, instead of
    all tokens with all centroids. Computed in float32 also under autocast. The weights of the tokens carry no
    gradient, their weighted means do.

    Args:
        x: (B, H * W, C) tokens in raster order.
        grid: (H, W) of the tokens.
        clusters: (h, w) of the centroids, at most ``grid``.
        n_iters: Number of k-means iterations, at least 1.
        window: Side, in cells of the (h, w) grid, of the square around its own cell in which a token is compared
            with centroids; odd.
        temperature: Factor of the squared distances.

    Returns:
        The centroids (B, h * w, C) in raster order, and the sum of the token weights of each (B, h * w), float32.
    """
    rows, far = _windows(grid, clusters, window, x.device)
    tokens = x.float().unflatten(1, grid)
    # Distances are small compared with the mean of all tokens: subtracting it first keeps more digits.
    centre = tokens.detach().mean((1, 2), keepdim=True)
    tokens = tokens - centre
    fixed = tokens.detach()
    with torch.autocast(x.device.type, enabled=False):
        centroids = F.adaptive_avg_pool2d(fixed.permute(0, 3, 1, 2), clusters).permute(0, 2, 3, 1)
        for _ in range(n_iters):
            seen = centroids.detach()
            norms = seen.square().sum(-1)[:, rows].flatten(2).unsqueeze(2)
            # The squared distance minus the token's squared norm, a constant of its softmax.
            distance = norms - 2 * (fixed @ seen[:, rows].flatten(2, 3).transpose(2, 3))
            share = (-temperature * distance).masked_fill(far, -torch.inf).softmax(-1)
            size = _sum_bands(share.sum(2, keepdim=True).transpose(2, 3), rows, clusters)
            total = _sum_bands(share.transpose(2, 3) @ tokens, rows, clusters)
            centroids = total / size.clamp_min(torch.finfo(size.dtype).tiny)
    return (centroids + centre).flatten(1, 2).to(x.dtype), size.flatten(1)


def _sum_bands(parts: Tensor, rows: Tensor, clusters: tuple[int, int]) -> Tensor:
    """Sum the contributions of all rows of tokens to the centroids: (B, H, band * w, C) -> (B, h, w, C)."""
    parts = parts.unflatten(2, (-1, clusters[1])).flatten(1, 2)
    return parts.new_zeros(parts.shape[0], *clusters, parts.shape[-1]).index_add(1, rows.flatten(), parts)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Compute squared Euclidean distances: (..., N, C) and (..., M, C) -> (..., N, M)."""
    norms = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
    # Rounding can make the difference of two large numbers negative.
    return (norms - 2 * (a @ b.transpose(-1, -2))).clamp_min(0)


def reconstruction(x: Tensor, centroids: Tensor, k: int, temperature: float, normalize: str) -> Assignment:
    """Compute the weight of each cluster in each token, for the token reconstruction layer.

    Computed in float32 also under autocast, without gradient.

    Args:
        x: (B, N, C) tokens before clustering.
        centroids: (B, M, C) centroids right after clustering.
        k: Number of nearest clusters that a token is reconstructed from; all M if there are fewer.
        temperature: Factor of the squared distances.
        normalize: Norm by which the weights of a token are divided: ``l2``, their Euclidean norm, or ``l1``, their sum.
    """
    x, centroids = x.detach().float(), centroids.detach().float()
    centre = x.mean(1, keepdim=True)
    with torch.autocast(x.device.type, enabled=False):
        distance = squared_distance(x - centre, centroids - centre)
    distance, index = distance.topk(min(k, distance.shape[2]), dim=2, largest=False)
    # Relative to the nearest cluster: the normalised weights are the same, but cannot all underflow to 0.
    weights = F.normalize((temperature * (distance[..., :1] - distance)).exp(), p=float(normalize[1]), dim=2)
    return Assignment(weights=weights.new_zeros(*x.shape[:2], centroids.shape[1]).scatter(2, index, weights))
