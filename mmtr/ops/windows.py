"""Windows of equal size, padded at the border, of the patch grid: merging, cutting and joining."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def window_matching(x: Tensor, grid: tuple[int, int], window: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Match the tokens of each window of similar tokens to its first one (ALGM's local step, CLAP).

    A window merges if the mean cosine similarity of its pairs of tokens reaches the threshold. If the grid is no
    multiple of the window, the last windows are smaller.

    Args:
        x: (B, H * W, C) tokens in raster order.
        grid: (H, W) of the tokens.
        window: Side of a window, in tokens.
        threshold: Smallest mean cosine similarity at which a window merges.

    Returns:
        Position (B, H * W) of the token that each token merges into, its own if it does not merge; and the mean
        similarity (B, H * W) in the window of each token, -inf if it does not merge.
    """
    rows, columns = (torch.arange(n, device=x.device) // window for n in grid)
    down, across = (-(-n // window) for n in grid)
    member = (rows.unsqueeze(1) * across + columns).flatten()
    first = (rows.unsqueeze(1) * window * grid[1] + columns * window).flatten()
    unit = F.normalize(x.detach().float(), dim=-1)

    def window_sum(values):
        return to_windows(values.unsqueeze(1), grid, window).sum(2).view(len(values), down * across, values.shape[2])

    # The sum over ordered pairs of different tokens is |sum of unit vectors|^2 minus the sum of their squared norms.
    pairs = window_sum(unit).square().sum(2) - window_sum(unit.square().sum(2, keepdim=True)).squeeze(2)
    count = window_sum(torch.ones_like(unit[:1, :, :1])).squeeze(2)
    alike = pairs / (count * (count - 1)).clamp(min=1)
    alike = alike.masked_fill((alike < threshold) | (count == 1), -torch.inf)[:, member]
    return torch.where(alike > -torch.inf, first, torch.arange(len(member), device=x.device)), alike


def to_windows(x: Tensor, grid: tuple[int, int], window: int, value: float = 0.0) -> Tensor:
    """Cut a grid into windows; the last ones are padded if the grid is no multiple of the window.

    Args:
        x: (B, heads, H * W, D) queries, keys or values.
        grid: (H, W) of the tokens.
        window: Side of a window, in patches.
        value: Value of the padding.

    Returns:
        (B * windows, heads, window * window, D).
    """
    height, width = grid
    x = F.pad(x.unflatten(2, grid), (0, 0, 0, -width % window, 0, -height % window), value=value)
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def from_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Join the windows of ``to_windows``: (B * windows, heads, window * window, D) -> (B, heads, H * W, D)."""
    height, width = grid
    x = x.unflatten(2, (window, window)).unflatten(0, (-1, -(-height // window), -(-width // window)))
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return x[:, :, :height, :width].flatten(2, 3)


def padding_of_windows(grid: tuple[int, int], window: int, device: Optional[torch.device] = None) -> Optional[Tensor]:
    """Say which tokens of ``to_windows`` are padding: (windows, window * window); None: there is none."""
    if grid[0] % window == grid[1] % window == 0:
        return None
    inside = torch.ones(1, 1, grid[0] * grid[1], 1, device=device)
    return to_windows(inside, grid, window).flatten(1) == 0


def bias_within(bias: Tensor, positions: Tensor) -> Tensor:
    """Cut the attention bias of a whole sequence into the biases of its windows.

    Args:
        bias: (B, heads or 1, N or 1, N) bias of queries and keys.
        positions: (W, n) positions of the tokens of each window; N for padding, whose bias is 0.

    Returns:
        (B * W, heads or 1, n or 1, n).
    """
    bias = F.pad(bias, (0, 1, 0, int(bias.shape[2] > 1)))
    if bias.shape[2] == 1:
        return bias[:, :, 0, positions].unsqueeze(3).transpose(1, 2).flatten(0, 1)
    return bias[:, :, positions.unsqueeze(2), positions.unsqueeze(1)].transpose(1, 2).flatten(0, 1)
