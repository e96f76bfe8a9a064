"""Resizing of pretrained position tables and patch embeddings to another grid or patch size."""

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
