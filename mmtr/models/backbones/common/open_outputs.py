"""The outputs of a plain ViT whose last layers run with the learned queries of a head (EoMT)."""

from typing import Any, Optional

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.reducers.base import NOTHING
from mmtr.tokens import Tokens

from .layer import run_layer


class OpenOutputs:
    """The outputs of a backbone that leaves its last layers to a head, which runs them with its queries.

    Reading them as a tuple of feature maps raises a ``UserError``.

    Args:
        backbone: The backbone, a ``ReducibleBackbone`` with ``query_layers``.
        tokens: Tokens after the layers without queries.
        size: (height, width) of the images, in pixels.
    """

    def __init__(self, backbone: Any, tokens: Tokens, size: tuple[int, int]):
        self.backbone, self.tokens, self.size = backbone, tokens, size
        self._reducer = backbone.token_reducer if backbone.reduces_with_queries else NOTHING

    @property
    def padded_size(self) -> tuple[int, int]:
        """The (height, width) of the images in whole patches, to which the patch embedding pads them."""
        patch = self.backbone.patch_embed.projection.kernel_size
        return tuple(n * side for n, side in zip(self.tokens.grid, patch))

    def join(self, queries: Tensor) -> Tokens:
        """Put queries (Q, C) behind class token and registers: reducers read the class token in the first place."""
        tokens = self.tokens
        if not self.backbone.reduces_with_queries:
            tokens = self.backbone.token_reducer.restore(tokens)
        own = queries.expand(tokens.x.shape[0], -1, -1).to(tokens.x.dtype)
        x = torch.cat([tokens.prefix, own, tokens.patches], 1)
        return tokens.replace(x=x, num_prefix=tokens.num_prefix + queries.shape[0])

    def run(self, k: int, tokens: Tokens, visible: Optional[Tensor] = None) -> Tokens:
        """Run the layer ``k`` of those with queries, counted from 0.

        Args:
            tokens: Tokens with queries, see ``join``.
            visible: (B, Q, H * W) which patches each query sees, bool; None: all.
        """
        i = len(self.backbone.layers) - self.backbone.query_layers + k
        tokens = tokens.replace(visible=visible)
        return run_layer(self.backbone.layers[i], tokens, self._reducer, i, self.backbone.peft)

    def read(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return the queries (B, Q, C) and the map of all patches (B, C, H, W), after the final norm."""
        first = self.tokens.num_prefix
        full = self.backbone.normed(self._reducer.restore(tokens))
        return full.x[:, first : full.num_prefix], full.patches.transpose(1, 2).unflatten(2, full.grid)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tokens (B, P + N, C) without queries, for measurements of speed."""
        return (self.tokens.x,)

    def _refuse(self, *args):
        raise UserError(
            f'The last {self.backbone.query_layers} layers of the backbone run with the queries of an EoMT head, so it '
            'gives no feature maps: use the backbone with that head alone.'
        )

    __getitem__ = __iter__ = __len__ = _refuse
