"""Scores of tokens by learned queries, and the highest of them."""
import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


def query_scores(x: Tensor, scorer: Tensor, pre_norm: bool = False) -> Tensor:
    """How much all queries together look for each token: (B, N, C) and (C,) -> (B, N), float32, no gradient.

    A token's score is the sum of its attention logits over heads and queries. Since
    sum_m q_m k_n = (sum_m q_m) k_n, the queries are summed first: O(N C), whatever their number. In half
    precision distinct scores would tie.

    Args:
        x: Tokens.
        scorer: The sum of the queries.
        pre_norm: Whether tokens are normalised first, without weight and bias: the weight belongs into
            ``scorer``, and a bias adds the same to all tokens.
    """
    x, scorer = x.detach().float(), scorer.detach().float()
    with torch.autocast(x.device.type, enabled=False):
        x = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) if pre_norm else x
        return (x @ scorer.unsqueeze(-1)).squeeze(-1)


def highest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` slots of highest score, in ascending order: (B, N) -> (B, count); of equal ones, the first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
