"""What a backbone hands on whose tokens are given back after the head."""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads import FCNHead, SegmenterMaskTransformerHead
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.tokens import Tokens


def takes_reduced_tokens(head: nn.Module) -> bool:
    """Whether logits of ``head`` come from the tokens of one output, wherever they stand: no neighbours, no resizing.

    A head of one's own says so itself with an attribute of this name; its ``loss`` and ``predict`` must be mmseg's.
    """
    said = getattr(head, 'takes_reduced_tokens', None)
    if said is not None:
        return said
    pointwise = all(conv.kernel_size == (1, 1) for conv in head.modules() if isinstance(conv, nn.Conv2d))
    return type(head) is SegmenterMaskTransformerHead or type(head) is FCNHead and pointwise


class ReducedOutputs:
    """Outputs of a backbone with ``restore_at='after_head'``: tokens that are no map, for ``logits`` to look at.

    Args:
        tokens: Of each output, normed as the backbone norms it.
        reducer: What reduced them.
    """

    def __init__(self, tokens: Sequence[Tokens], reducer: TokenReducer):
        self._tokens, self._reducer = tokens, reducer

    def logits(self, head: nn.Module) -> Tensor:
        """What ``head``, one that ``takes_reduced_tokens``, says of every patch: (B, K, H, W)."""
        tokens = self._tokens[head.in_index]
        logits = self._reducer.give_back(self._run_unpadded(head, tokens), tokens)
        return logits.transpose(1, 2).unflatten(2, tokens.grid).contiguous()

    def tensors(self) -> tuple[Tensor, ...]:
        """The tokens (B, P + N, C) of each output, for those who only ask what it costs to make them."""
        return tuple(tokens.x for tokens in self._tokens)

    def _run_unpadded(self, head, tokens):
        """(B, N, K) of the N reduced tokens; where there is padding image by image, since a head may attend to it."""
        if self._reducer.fixed_count or tokens.size is None or bool((tokens.size > 0).all()):
            return self._run(head, tokens.patches)
        logits = []
        for patches, there in zip(tokens.patches, tokens.size > 0):
            said = self._run(head, patches[there].unsqueeze(0))
            padded = said.new_zeros(1, len(there), said.shape[2])
            logits.append(padded.index_copy(1, there.nonzero().squeeze(1), said))
        return torch.cat(logits)

    def _run(self, head, patches):
        maps = [None] * len(self._tokens)
        maps[head.in_index] = patches.transpose(1, 2).unsqueeze(2)
        return head.forward(maps).flatten(2).transpose(1, 2)

    def _refuse(self, *args):
        raise UserError(
            "token_reduction.restore_at='after_head' leaves the tokens reduced until the head has seen "
            "them, and only a segmentor of type='mmtr.EncoderDecoder' gives its logits back: use that, or "
            "restore_at='before_norm'."
        )

    __getitem__ = __iter__ = __len__ = _refuse
