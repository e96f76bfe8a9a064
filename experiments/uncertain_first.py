"""Prune patches in the order of a trained plain model's certainty about them, to see what a ranking could gain.

This is not for use, since the plain model has to compute every patch: docs/benchmarks.md compares learned rankings with
it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmtr.inference.model import load_weights
from mmtr.models.segmentors.encoder_decoder import EncoderDecoder
from mmtr.reducers.pruning import PruneReducer
from mmtr.registry import TOKEN_REDUCERS
from mmtr.tokens import Tokens

PATCH = 16


@TOKEN_REDUCERS.register_module()
class RankedElsewhere(PruneReducer):
    """Prunes by Cropr's schedule; ``ranking``, the score of each patch (B, H * W), is set before each forward pass."""

    def __init__(self, backbone, r=None, layers=None):
        super().__init__(backbone, 'last', r, layers, None, 'llf')
        self.ranking = None

    def score(self, i: int, tokens: Tokens) -> torch.Tensor:
        """Look up the score of each token; see ``PruneReducer``."""
        return self.ranking.gather(1, self._index(tokens))


@MODELS.register_module()
class UncertainFirst(EncoderDecoder):
    """A segmentor whose reducer ranks patches by the entropy of a plain model's prediction.

    Args:
        teacher: Checkpoint of the plain model.
    """

    def __init__(self, *args: Any, teacher: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        backbone = dict(kwargs['backbone'], token_reduction=None)
        plain = MODELS.build(
            dict(
                type='EncoderDecoder', backbone=backbone, decode_head=kwargs['decode_head'], test_cfg=kwargs['test_cfg']
            )
        )
        load_weights(plain, teacher)
        plain.requires_grad_(False).train(False)
        self.teacher = [plain]  # in a list, so that its weights are not part of this model

    @torch.no_grad()
    def rank(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute the plain model's mean entropy in each patch, (B, H * W), of images (B, 3, height, width)."""
        plain = self.teacher[0]
        logits = plain.decode_head(plain.backbone(inputs)).float()
        size = [PATCH * n for n in logits.shape[2:]]
        chances = F.interpolate(logits, size, mode='bilinear').softmax(1)
        entropy = -torch.xlogy(chances, chances).sum(1, keepdim=True)
        return F.avg_pool2d(entropy, PATCH).flatten(1)

    def extract_feat(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Rank the patches, then extract features as the stock model."""
        self.backbone.token_reducer.ranking = self.rank(inputs)
        return super().extract_feat(inputs)
