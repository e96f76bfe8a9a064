"""The outputs of a backbone whose tokens are restored after the head."""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads import FCNHead, SegmenterMaskTransformerHead
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.tokens import Tokens


def takes_reduced_tokens(head: nn.Module) -> bool:
    """Say whether a decode head can run on reduced tokens: on one output, without neighbourhoods or resizing.

    A custom head says so by an attribute of this name; its ``loss`` and ``predict`` must be mmseg's.
    """
    said = getattr(head, 'takes_reduced_tokens', None)
    if said is not None:
        return said
    pointwise = all(conv.kernel_size == (1, 1) for conv in head.modules() if isinstance(conv, nn.Conv2d))
    return type(head) is SegmenterMaskTransformerHead or type(head) is FCNHead and pointwise


class ReducedOutputs:
    """The outputs of a backbone with ``restore_at='after_head'``: reduced tokens, which form no feature map.

    Reading them as a tuple of feature maps raises a ``UserError``.

    Args:
        tokens: Reduced tokens of each output, normalised as the feature maps would be.
        reducer: Reducer that reduced them.
    """

    def __init__(self, tokens: Sequence[Tokens], reducer: TokenReducer):
        self._tokens, self._reducer = tokens, reducer

    def logits(self, head: nn.Module) -> Tensor:
        """Run a head that ``takes_reduced_tokens``, and restore its logits for all patches: (B, K, H, W)."""
        tokens = self._tokens[head.in_index]
        logits = self._reducer.give_back(self._run_unpadded(head, tokens), tokens)
        return logits.transpose(1, 2).unflatten(2, tokens.grid).contiguous()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the reduced tokens (B, P + N, C) of each output, for measurements of speed."""
        return tuple(tokens.x for tokens in self._tokens)

    def _run_unpadded(self, head, tokens):
        """Compute the logits (B, N, K) of reduced tokens; image by image if there is padding, which a head may read."""
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
