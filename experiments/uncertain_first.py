"""What a ranking could gain: patches leave in the order of a trained plain model's own certainty about them.

Not for use, since that model has computed every patch: docs/benchmarks.md compares learned rankings with it.
"""

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS

from mmtr.inference.model import load_weights
from mmtr.models.segmentors.encoder_decoder import EncoderDecoder
from mmtr.reducers.pruning import PruneReducer
from mmtr.registry import TOKEN_REDUCERS

PATCH = 16


@TOKEN_REDUCERS.register_module()
class RankedElsewhere(PruneReducer):
    """The schedule of Cropr; the score of each patch, (B, H * W), is set before each forward."""

    def __init__(self, backbone, r=None, layers=None):
        super().__init__(backbone, 'last', r, layers, None, 'llf')
        self.ranking = None

    def score(self, i, tokens):
        """See ``PruneReducer``."""
        return self.ranking.gather(1, self._index(tokens))


@MODELS.register_module()
class UncertainFirst(EncoderDecoder):
    """A segmentor whose reducer ranks patches by the mean entropy of what ``teacher``, a checkpoint, predicts."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        backbone = dict(kwargs['backbone'], token_reduction=None)
        plain = MODELS.build(
            dict(
                type='EncoderDecoder', backbone=backbone, decode_head=kwargs['decode_head'], test_cfg=kwargs['test_cfg']
            )
        )
        load_weights(plain, teacher)
        plain.requires_grad_(False).train(False)
        self.teacher = [plain]  # not among the weights

    @torch.no_grad()
    def rank(self, inputs):
        """The mean entropy in each patch, (B, H * W)."""
        plain = self.teacher[0]
        logits = plain.decode_head(plain.backbone(inputs)).float()
        size = [PATCH * n for n in logits.shape[2:]]
        chances = F.interpolate(logits, size, mode='bilinear').softmax(1)
        entropy = -torch.xlogy(chances, chances).sum(1, keepdim=True)
        return F.avg_pool2d(entropy, PATCH).flatten(1)

    def extract_feat(self, inputs):
        """As stock, once the patches are ranked."""
        self.backbone.token_reducer.ranking = self.rank(inputs)
        return super().extract_feat(inputs)
