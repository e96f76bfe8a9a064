"""The one attention contract that every host keeps, and every reducer can count on."""

from typing import Optional

from torch import Tensor

from mmtr.ops.attention import attention

#: Queries, keys, values and bias of tokens that all attend to each other; see ``mmtr.ops.attention``.
Group = tuple[Tensor, Tensor, Tensor, Optional[Tensor]]


class TokenAttention:
    """What a reducer attends the tokens of a layer with, ``layer.attn.at(tokens)``: it knows where they are.

    A host gives ``qkv``, and, where not all tokens attend to all, ``split`` and ``join``.
    """

    #: See ``mmtr.ops.attention``.
    backend: str
    #: Probability to drop an attention weight, now.
    attention_dropout = 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values: (B, P + M, C) -> three of (B, heads, P + M, D).

        Args:
            x: Normed prefix and patch tokens.
            kept: (B, M) which of the patch tokens of ``tokens`` each patch token is; None: all, in order.
        """
        raise NotImplementedError

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None, kept: Optional[Tensor] = None
    ) -> Tensor:
        """Attention and output projection of what ``qkv`` gave: (B, P + M, C).

        Args:
            bias: Added to the logits, and to what the host adds itself: (B or 1, heads or 1, P + M or 1, P + M);
                -inf hides a key.
            kept: As of ``qkv``.
        """
        return self.within(self.split(q, k, v, bias, kept), q.shape[2])

    def branch(self, x: Tensor) -> Tensor:
        """Self-attention without residual and drop path: (B, P + N, C) -> (B, P + N, C)."""
        return self.attend(*self.qkv(x))

    def within(self, groups: list[Group], count: int) -> Tensor:
        """Attention within each group, and output projection: (B, ``count``, C). All attention comes by here."""
        outs = [attention(q, k, v, self.backend, self.attention_dropout, bias) for q, k, v, bias in groups]
        return self.join(outs, count)

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """The groups of tokens that attend to each other; here: all to all."""
        return [(q, k, v, bias)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """The output of the branch, (B, ``count``, C), from what was attended in each group."""
        (out,) = outs
        return self.project(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> Tensor:
        """The output projection, and what else ends the branch: (B, N, C) -> (B, N, C)."""
        raise NotImplementedError
