"""Pooling and upsampling of the patch grid, as products with small matrices."""

import torch
from torch import Tensor


def cell_centres(grid: tuple[int, int], cells: tuple[int, int], device: torch.device) -> Tensor:
    """Return the raster position of the patch in the centre of each of (h, w) cells of an (H, W) grid: (h * w,)."""
    rows, columns = ((torch.arange(n, device=device) * 2 + 1) * size // (2 * n) for n, size in zip(cells, grid))
    return (rows.unsqueeze(1) * grid[1] + columns).flatten()


def _along_both(x: Tensor, grid: tuple[int, int], matrices: tuple[Tensor, Tensor]) -> Tensor:
    """Multiply a grid by one matrix along its rows and one along its columns: (B, H * W, C) -> (B, h * w, C)."""
    rows, columns = (matrix.to(x.dtype) for matrix in matrices)
    # Autocast would round the residual stream to half precision here.
    with torch.autocast(x.device.type, enabled=False):
        x = (rows @ x.unflatten(1, grid).flatten(2)).unflatten(2, (grid[1], -1))
        return (columns @ x).flatten(1, 2)


def average_pool(x: Tensor, grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """Pool an (H, W) grid to (h, w) cells by adaptive average pooling: (B, H * W, C) -> (B, h * w, C)."""
    return _along_both(x, grid, tuple(_pool_matrix(n, m, x.device) for n, m in zip(grid, cells)))


def upsample(x: Tensor, cells: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Upsample (h, w) cells to an (H, W) grid, bilinearly, corners not aligned: (B, h * w, C) -> (B, H * W, C)."""
    return _along_both(x, cells, tuple(_interpolation_matrix(n, m, x.device) for n, m in zip(cells, grid)))


def _pool_matrix(n: int, m: int, device) -> Tensor:
    """Return the (m, n) matrix whose cell i is the mean of positions floor(i n / m) to ceil((i + 1) n / m) - 1."""
    cell = torch.arange(m, device=device).unsqueeze(1)
    position = torch.arange(n, device=device)
    inside = (position >= cell * n // m) & (position < -(-(cell + 1) * n // m))
    return inside / inside.sum(1, keepdim=True)


def _interpolation_matrix(m: int, n: int, device) -> Tensor:
    """Return the (n, m) matrix that interpolates linearly between the centres of m cells at n positions."""
    place = ((torch.arange(n, device=device) + 0.5) * m / n - 0.5).clamp(0, m - 1)
    return (1 - (place.unsqueeze(1) - torch.arange(m, device=device)).abs()).clamp_min(0)
