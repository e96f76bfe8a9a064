"""The interface of attention that reducers use, the same for every backbone."""

from typing import Optional

from torch import Tensor

from mmtr.ops.attention import attention
from mmtr.ops.bipartite import Matching

#: Queries, keys, values and bias of tokens that attend to each other; see ``mmtr.ops.attention``.
Group = tuple[Tensor, Tensor, Tensor, Optional[Tensor]]


class TokenAttention:
    """Base class of self-attention bound to the ``tokens`` of a layer, as ``layer.attn.at(tokens)`` returns it.

    A backbone implements ``qkv`` and ``project``; ``split`` and ``join`` too if attention is windowed.
    """

    #: Attention backend, see ``mmtr.ops.attention``.
    backend: str
    #: Current probability to drop an attention weight.
    attention_dropout = 0.0
    #: Whether queries may be of other tokens than keys: not where a window or a bias needs to know both.
    merges_apart = True

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values, with rotary position embedding if the backbone has it.

        Args:
            x: (B, P + M, C) prefix and patch tokens, normalised.
            kept: (B, M) indices in ``tokens.patches`` of the patch tokens of ``x``; None: all, in order.

        Returns:
            Three tensors (B, heads, P + M, D).
        """
        raise NotImplementedError

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None, kept: Optional[Tensor] = None
    ) -> Tensor:
        """Compute attention and output projection of the result of ``qkv``.

        Args:
            q: (B, heads, P + M, D) queries.
            k: (B, heads, P + M, D) keys.
            v: (B, heads, P + M, D) values.
            bias: (B or 1, heads or 1, P + M or 1, P + M) added to the logits and to the backbone's own bias; -inf
                masks a key.
            kept: As in ``qkv``.

        Returns:
            (B, P + M, C).
        """
        return self.within(self.split(q, k, v, bias, kept), q.shape[2])

    def positioned(
        self, q: Tensor, k: Tensor, kept: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Return queries, keys and a bias of which ``attend`` makes its logits, for methods that rank by these.

        Logits are the products divided by the root of the channels, plus the bias. Where tokens attend within windows,
        these are the logits without windows.

        Args:
            q: (B, heads, Q, D) queries of ``qkv``, of the first Q tokens.
            k: (B, heads, P + M, D) keys of ``qkv``.
            kept: As in ``qkv``.

        Returns:
            Two tensors (B, heads, Q or P + M, E), with E > D where relative positions are channels; and the bias
            (B or 1, heads, Q, P + M), or None.
        """
        return q, k, None

    def sources(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens of keys and values, of ``x`` whose patch tokens form ``grid``, and their grid."""
        return x, grid

    def queries(self, x: Tensor, kept: Optional[Tensor] = None) -> Tensor:
        """Project tokens to queries alone, see ``qkv``."""
        return self.qkv(x, kept)[0]

    def keys_values(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """Project ``sources``, or some of them, to keys and values, see ``qkv``."""
        return self.qkv(x, kept)[1:]

    def merging(self, matching: Matching) -> 'TokenAttention':
        """Return the attention of keys that were merged by ``matching`` within the layer."""
        return self

    def branch(self, x: Tensor) -> Tensor:
        """Compute self-attention without residual and drop path: (B, P + N, C) -> (B, P + N, C)."""
        return self.attend(*self.qkv(x))

    def within(self, groups: list[Group], count: int) -> Tensor:
        """Compute attention within each group, and the output projection: (B, ``count``, C)."""
        outs = [attention(q, k, v, self.backend, self.attention_dropout, bias) for q, k, v, bias in groups]
        return self.join(outs, count)

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Split the arguments of ``attend`` into groups of tokens that attend to each other; here: one group of all."""
        return [(q, k, v, bias)]

    def join(self, outs: list[Tensor], count: int) -> Tensor:
        """Join the attention outputs of all groups, and project them: (B, ``count``, C)."""
        (out,) = outs
        return self.project(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, with its norm or LayerScale: (B, N, C) -> (B, N, C)."""
        raise NotImplementedError
