"""Windows of the patch grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_matching(x: Tensor, grid: tuple[int, int], window: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Where each token goes if windows of alike tokens merge into their first one (ALGM's local step).

    A window merges when the mean cosine similarity of its pairs is not below the threshold. Where the
    grid is no multiple of the window, the last ones hold what is left.

    Args:
        x: (B, H * W, C).
        grid: (H, W).
        window: Side of a window, in tokens.
        threshold: Cosine similarity.

    Returns:
        Positions (B, H * W), and the mean similarity in each token's window, -inf where it does not merge.
    """
    rows, columns = (torch.arange(n, device=x.device) // window for n in grid)
    down, across = (-(-n // window) for n in grid)
    member = (rows.unsqueeze(1) * across + columns).flatten()
    first = (rows.unsqueeze(1) * window * grid[1] + columns * window).flatten()
    unit = F.normalize(x.detach().float(), dim=-1)

    def window_sum(values):
        return to_windows(values.unsqueeze(1), grid, window).sum(2).view(len(values), down * across, values.shape[2])

    # The sum over pairs of different tokens is |sum of units|^2 less the tokens' own squares.
    pairs = window_sum(unit).square().sum(2) - window_sum(unit.square().sum(2, keepdim=True)).squeeze(2)
    count = window_sum(torch.ones_like(unit[:1, :, :1])).squeeze(2)
    alike = pairs / (count * (count - 1)).clamp(min=1)
    alike = alike.masked_fill((alike < threshold) | (count == 1), -torch.inf)[:, member]
    return torch.where(alike > -torch.inf, first, torch.arange(len(member), device=x.device)), alike


def to_windows(x: Tensor, grid: tuple[int, int], window: int, value: float = 0.0) -> Tensor:
    """Cut a grid into windows; the last ones are padded with ``value`` where it is no multiple of them.

    Args:
        x: (B, heads, H * W, D).
        grid: (H, W).
        window: Side of a window, in patches.

    Returns:
        (B * windows, heads, window * window, D).
    """
    height, width = grid
    x = F.pad(x.unflatten(2, grid), (0, 0, 0, -width % window, 0, -height % window), value=value)
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def from_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Put windows together again: what ``to_windows`` made -> (B, heads, H * W, D)."""
    height, width = grid
    x = x.unflatten(2, (window, window)).unflatten(0, (-1, -(-height // window), -(-width // window)))
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return x[:, :, :height, :width].flatten(2, 3)


def bias_within(bias: Tensor, positions: Tensor) -> Tensor:
    """The part of a bias of a whole sequence that is within each of its windows.

    Args:
        bias: (B, heads or 1, N or 1, N).
        positions: (W, n) of the tokens of each window; N for padding, of which it says nothing.

    Returns:
        (B * W, heads or 1, n or 1, n).
    """
    bias = F.pad(bias, (0, 1, 0, int(bias.shape[2] > 1)))
    if bias.shape[2] == 1:
        return bias[:, :, 0, positions].unsqueeze(3).transpose(1, 2).flatten(0, 1)
    return bias[:, :, positions.unsqueeze(2), positions.unsqueeze(1)].transpose(1, 2).flatten(0, 1)
