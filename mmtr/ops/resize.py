"""Resizing of pretrained position tables and patch embeddings to another grid or patch size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _bicubic(x, antialias=True, **size):
    # Antialiasing also changes the coefficient of the bicubic kernel, to the one that timm resizes with.
    return F.interpolate(x, mode='bicubic', antialias=antialias, **size)


def resize_positions(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    num_prefix: int,
    antialias: bool = True,
    offset: float = 0.0,
) -> Tensor:
    """Resize a position table to another grid, bicubically; the rows of prefix tokens stay as they are.

    Args:
        table: (1, P + H * W, C) position table.
        old: (H, W) of its grid.
        new: (H', W') of the other grid.
        num_prefix: Number of prefix tokens, P.
        antialias: As of ``F.interpolate``.
        offset: Number of patches, below 1, added to the new grid where the scale is computed (DINO, DINOv2).

    Returns:
        (1, P + H' * W', C).
    """
    if old == new:
        return table
    size = dict(scale_factor=[(n + offset) / m for n, m in zip(new, old)]) if offset else dict(size=new)
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    patches = _bicubic(patches.transpose(1, 2).unflatten(2, old).float(), antialias, **size)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def resize_patches(kernel: Tensor, new: tuple[int, int]) -> Tensor:
    """Resize the kernel of a patch embedding to another patch size (FlexiViT, Beyer et al., Sec. 3.4).

    Patches that are enlarged together with the kernel keep their embedding.

    Args:
        kernel: (C, channels, height, width) kernel.
        new: (height, width) of the other patch size, in pixels.

    Returns:
        (C, channels, *new).
    """
    old = tuple(kernel.shape[-2:])
    if old == new:
        return kernel
    pixels = old[0] * old[1]
    enlarge = _bicubic(torch.eye(pixels, device=kernel.device).view(pixels, 1, *old), size=new).flatten(1)
    fitted = kernel.flatten(2).double() @ torch.linalg.pinv(enlarge.double()).T
    return fitted.to(kernel.dtype).unflatten(2, new)


def resize_relative_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], mode: str = 'bicubic'
) -> Tensor:
    """Resize a relative position table to another window; no antialiasing, which would blur the entry of offset 0.

    Args:
        table: ((2 H - 1) * (2 W - 1), heads) relative position table.
        old: (H, W) of its window.
        new: (H', W') of the other window.
        mode: As of ``F.interpolate``; OpenMMLab resizes the tables of pretrained Swins bicubically.

    Returns:
        ((2 H' - 1) * (2 W' - 1), heads).
    """
    if old == new:
        return table
    grid = table.t().float().view(1, -1, *(2 * n - 1 for n in old))
    grid = F.interpolate(grid, tuple(2 * n - 1 for n in new), mode=mode)
    return grid.flatten(2).squeeze(0).t().to(table.dtype)


def resize_offsets(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize a relative position table to another grid of patches, so that near offsets keep their row.

    As in BEiT's released code: for a larger grid, the old offsets are put at distances 0, 1, 1 + q, 1 + q + q^2 and so
    on, with q such that the last one comes last again. Between these, rows are interpolated, here by Keys' cubic in
    place of a spline. For a smaller grid the far offsets are left out.

    Args:
        table: ((2 H - 1) * (2 W - 1) + E, heads) relative position table; its last E rows stay as they are.
        old: (H, W) of its grid.
        new: (H', W') of the other grid.

    Returns:
        ((2 H' - 1) * (2 W' - 1) + E, heads).
    """
    if old == new:
        return table
    sides = [2 * n - 1 for n in old]
    offsets, others = table[: sides[0] * sides[1]], table[sides[0] * sides[1] :]
    rows, columns = (_offset_matrix(m, n, table.device) for m, n in zip(old, new))
    with torch.autocast(table.device.type, enabled=False):
        grid = rows @ offsets.t().float().unflatten(1, sides) @ columns.t()
    return torch.cat([grid.flatten(1).t().to(table.dtype), others])


def _offset_matrix(m: int, n: int, device) -> Tensor:
    """Return the (2 n - 1, 2 m - 1) matrix that interpolates the offsets of m positions at those of n."""
    offset = torch.arange(1 - n, n, device=device)
    place = offset.float()
    if n > m:
        low, high = 1.0, float(n)
        for _ in range(64):
            q = (low + high) / 2
            low, high = (low, q) if sum(q**k for k in range(m - 1)) > n - 1 else (q, high)
        place = offset.sign() * torch.log1p(offset.abs() * (q - 1)) / math.log(q)
        place = place.clamp(1 - m, m - 1)
    distance = (place.unsqueeze(1) - torch.arange(1 - m, m, device=device)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


def resize_differences(table: Tensor, new: int) -> Tensor:
    """Resize a table of the differences of positions along one axis, linearly (ViTDet).

    Args:
        table: (2 N - 1, D), a row for each difference of -(N - 1) to N - 1.
        new: Number of positions of the other axis, N'.

    Returns:
        (2 N' - 1, D).
    """
    if len(table) == 2 * new - 1:
        return table
    return F.interpolate(table.t().unsqueeze(0).float(), 2 * new - 1, mode='linear').squeeze(0).t().to(table.dtype)
