"""Windows of the patch grid that hold alike tokens."""
import torch
import torch.nn.functional as F
from torch import Tensor


def window_matching(x: Tensor, grid: tuple[int, int], window: int, threshold: float) -> Tensor:
    """Where each token goes if windows of alike tokens merge into their first one (ALGM's local step).

    A window merges when the mean cosine similarity of its pairs is above the threshold. Where the
    grid is no multiple of the window, the last ones hold what is left.

    Args:
        x: (B, H * W, C).
        grid: (H, W).
        window: Side of a window, in tokens.
        threshold: Cosine similarity.

    Returns:
        (B, H * W) positions.
    """
    rows, columns = (torch.arange(n, device=x.device) // window for n in grid)
    across = -(-grid[1] // window)
    member = (rows.unsqueeze(1) * across + columns).flatten()
    first = (rows.unsqueeze(1) * window * grid[1] + columns * window).flatten()
    unit = F.normalize(x.detach().float(), dim=-1)

    def window_sum(values):
        return values.new_zeros(values.shape[0], -(-grid[0] // window) * across, values.shape[2]).index_add(
            1, member, values)

    # The sum over pairs of different tokens is |sum of units|^2 less the tokens' own squares.
    pairs = window_sum(unit).square().sum(2) - window_sum(unit.square().sum(2, keepdim=True)).squeeze(2)
    count = window_sum(torch.ones_like(unit[:1, :, :1])).squeeze(2)
    alike = pairs / (count * (count - 1)).clamp(min=1) > threshold
    return torch.where(alike[:, member], first, torch.arange(len(member), device=x.device))
