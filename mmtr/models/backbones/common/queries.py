"""What the learned queries of a head see of the patches, in layers that they have joined (EoMT)."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.ops.bipartite import Matching
from mmtr.tokens import Tokens

from .attention import Group, TokenAttention


class QueriesSee(TokenAttention):
    """Attention in which each learned query sees some of the patches; all other tokens see all (EoMT, Sec. 3).

    A token that stands for several patches, of which a query sees a share, gets that share of its weight, if
    attention is proportional to sizes; otherwise it is seen as soon as one of its patches is.

    Args:
        attn: Attention of the layer.
        shares: (B, Q, N) result of ``Tokens.visible_shares``.
        num_prefix: Number of prefix tokens, of which the last Q are the queries.
        proportional: Whether attention is proportional to the sizes of merged tokens.
    """

    merges_apart = True

    def __init__(self, attn: TokenAttention, shares: Tensor, num_prefix: int, proportional: bool):
        self.attn, self.shares, self.num_prefix, self.proportional = attn, shares, num_prefix, proportional
        self.backend, self.attention_dropout = attn.backend, attn.attention_dropout
        for name in ('qkv', 'positioned', 'sources', 'queries', 'keys_values', 'project'):
            setattr(self, name, getattr(attn, name))

    def merging(self, matching: Matching) -> TokenAttention:
        """Pool what queries see as keys are merged, see ``TokenAttention``."""
        left, slots = matching.kept.shape[1], matching.slots().unsqueeze(1)
        sums = self.shares.new_zeros(*self.shares.shape[:2], left)
        counts = sums[:, :1].scatter_add(2, slots, torch.ones_like(self.shares[:, :1]))
        shares = sums.scatter_add(2, slots.expand_as(self.shares), self.shares) / counts
        return QueriesSee(self.attn, shares, self.num_prefix, self.proportional)

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Split the queries from the other tokens, so that these may use kernels without a bias."""
        shares, first = self.shares, self.num_prefix - self.shares.shape[1]
        if shares.shape[2] != k.shape[2] - self.num_prefix:
            shares = shares.gather(2, kept.unsqueeze(1).expand(-1, shares.shape[1], -1))
        seen = shares.log() if self.proportional else torch.where(shares > 0, 0.0, -torch.inf)
        seen = F.pad(seen.to(q.dtype), (self.num_prefix, 0)).unsqueeze(1)
        others = torch.cat([q[:, :, :first], q[:, :, self.num_prefix :]], 2)
        return [(others, k, v, bias), (q[:, :, first : self.num_prefix], k, v, seen if bias is None else seen + bias)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """Join the outputs of all tokens in their order, and project them, see ``TokenAttention``."""
        others, queries = outs
        first = self.num_prefix - self.shares.shape[1]
        return self.attn.join([torch.cat([others[:, :, :first], queries, others[:, :, first:]], 2)], count)


def seen_by_queries(attn: TokenAttention, tokens: Tokens, proportional: bool) -> TokenAttention:
    """Return the attention of a layer, in which queries see what is ``tokens.visible`` to them."""
    if tokens.visible is None:
        return attn
    return QueriesSee(attn, tokens.visible_shares(), tokens.num_prefix, proportional)
