"""Pretrained weights for a grid of patches, made to fit another one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _bicubic(x, antialias=True, **size):
    # Antialiasing also picks another bicubic kernel, the one that timm's models are resized with.
    return F.interpolate(x, mode='bicubic', antialias=antialias, **size)


def resize_positions(
    table: Tensor,
    old: tuple[int, int],
    new: tuple[int, int],
    num_prefix: int,
    antialias: bool = True,
    offset: float = 0.0,
) -> Tensor:
    """A position table (1, P + H * W, C) for another grid; its P prefix tokens stay as they are.

    Args:
        antialias: As of ``F.interpolate``.
        offset: Patches, below 1, that the new grid counts as larger where the scale is computed (DINO, DINOv2).
    """
    if old == new:
        return table
    size = dict(scale_factor=[(n + offset) / m for n, m in zip(new, old)]) if offset else dict(size=new)
    prefix, patches = table[:, :num_prefix], table[:, num_prefix:]
    patches = _bicubic(patches.transpose(1, 2).unflatten(2, old).float(), antialias, **size)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2).to(table.dtype)], 1)


def resize_patches(kernel: Tensor, new: tuple[int, int]) -> Tensor:
    """A patch embedding's kernel for another patch size (FlexiViT, Beyer et al., Sec. 3.4).

    Patches that are enlarged together with the kernel get the embedding that they had.

    Args:
        kernel: (C, channels, height, width).
        new: (height, width).
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
    """A table of relative positions ((2 H - 1) * (2 W - 1), heads) of an (H, W) window for another window.

    ``mode``: as of ``F.interpolate``; bicubic is how OpenMMLab resizes the tables of pretrained Swins. No antialiasing:
    it would blur the entry for a token itself.
    """
    if old == new:
        return table
    grid = table.t().float().view(1, -1, *(2 * n - 1 for n in old))
    grid = F.interpolate(grid, tuple(2 * n - 1 for n in new), mode=mode)
    return grid.flatten(2).squeeze(0).t().to(table.dtype)
