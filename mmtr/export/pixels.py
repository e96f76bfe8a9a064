"""Models that take pixels and give what a file is to give."""

from typing import Union

from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError
from mmtr.models.preprocessing import turns_to_rgb

#: The detector, whose module imports mmdet.
EOMT = 'mmtr.EoMT'


class _FromPixels(nn.Module):
    """A model with the normalisation of its ``data_preprocessor`` before it and the labels after it.

    Args:
        model: In eval mode.

    Attributes:
        outputs: The names of what it gives.
        unit: What has one label.
    """

    outputs: tuple[str, ...]
    unit: str

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def normalised(self, image: Tensor) -> Tensor:
        """Prepare pixels (B, C, H, W), uint8, as the model takes them."""
        prepare = self.model.data_preprocessor
        x = (image.flip(1) if turns_to_rgb(prepare, image.shape[1]) else image).float()
        return (x - prepare.mean) / prepare.std if prepare._enable_normalize else x


class PixelSegmentor(_FromPixels):
    """An ``EncoderDecoder`` of mmseg; see ``_FromPixels``."""

    outputs, unit = ('logits', 'labels'), 'pixel'

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment pixels (B, C, H, W), uint8: return logits (B, classes, H, W) and labels (B, H, W), int64.

        Both are as of mmseg's ``predict``: with one output channel, the logits are probabilities.
        """
        logits = self.model.encode_decode(self.normalised(image), [dict(img_shape=tuple(image.shape[2:]))])
        if logits.shape[1] > 1:
            return logits, logits.argmax(1)
        logits = logits.sigmoid()
        return logits, (logits > self.model.decode_head.threshold).long().squeeze(1)


class PixelClassifier(_FromPixels):
    """A classifier of mmpretrain, of one class an image; see ``_FromPixels``."""

    outputs, unit = ('scores', 'labels'), 'image'

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Classify pixels (B, C, H, W), uint8: return probabilities (B, classes) and labels (B), int64."""
        scores = self.model(self.normalised(image), mode='tensor').softmax(1)
        return scores, scores.argmax(1)


class PixelQueries(_FromPixels):
    """An ``mmtr.EoMT``, whose fusion head is left to who runs the file; see ``_FromPixels``."""

    outputs, unit = ('masks', 'labels', 'scores'), 'mask'

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run pixels (B, C, H, W), uint8, through the queries.

        Returns:
            Mask logits (B, Q, h, w); the best class of each query (B, Q), int64, K for no object; and the
            probabilities of the classes (B, Q, K + 1).
        """
        classes, masks = self.model.panoptic_head.predict(self.model.extract_feat(self.normalised(image)), [])
        return masks, classes.argmax(2), classes.softmax(2)


def of_pixels(model: nn.Module) -> Union[PixelSegmentor, PixelClassifier, PixelQueries]:
    """Return the module that a file is made of; raise a ``UserError`` for a model that none can be made of."""
    if isinstance(model, EncoderDecoder):
        return PixelSegmentor(model).eval()
    if derives(type(model), CLASSIFIER):
        return PixelClassifier(model).eval()
    if derives(type(model), EOMT):
        return PixelQueries(model).eval()
    raise UserError(
        f'A {type(model).__name__} cannot be exported: give the config of a segmentor, an EncoderDecoder of mmseg, of '
        'a classifier of mmpretrain, or of an mmtr.EoMT.'
    )
