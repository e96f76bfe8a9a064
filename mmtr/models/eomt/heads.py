"""The heads of EoMT: for panoptic and instance segmentation in mmdet, and for semantic segmentation in mmseg."""

from collections.abc import Sequence
from typing import Optional

from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.structures import DetDataSample
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead as SegMask2FormerHead
from torch import Tensor

from mmtr.models.backbones.common.open_outputs import OpenOutputs
from mmtr.models.maskdino.targets import targets_of
from mmtr.registry import MODELS
from mmtr.settings import Flag, Whole

from .queries import QueryHead


@MODELS.register_module()
class EoMTHead(QueryHead, Mask2FormerHead):
    """EoMT's head for panoptic and instance segmentation, with Mask2Former's matching and losses.

    Args:
        num_things_classes: Number of thing classes, whose labels come first.
        num_stuff_classes: Number of stuff classes.
        train_cfg, test_cfg: Unused; mmdet's detectors pass them.
        kwargs: ``QueryHead``'s.

    Raises:
        UserError: A setting has a value that is not allowed, or does not exist.
    """

    setting_prefix = 'panoptic_head.'
    decided = ('num_classes',)

    def __init__(
        self,
        num_things_classes: Whole(0, 2**16) = 80,
        num_stuff_classes: Whole(0, 2**16) = 53,
        train_cfg: Optional[dict] = None,
        test_cfg: Optional[dict] = None,
        **kwargs,
    ):
        super().__init__(num_classes=num_things_classes + num_stuff_classes, **kwargs)
        self.num_things_classes, self.num_stuff_classes = num_things_classes, num_stuff_classes

    def loss(self, x: OpenOutputs, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Compute ``loss_cls``, ``loss_mask`` and ``loss_dice``; those of earlier predictions start with ``d0.``..."""
        classes, masks = self(x)
        targets = targets_of(batch_data_samples, self.num_things_classes, self.num_stuff_classes, masks[0].device)
        return self.loss_by_feat(classes, masks, targets, [sample.metainfo for sample in batch_data_samples])

    def predict(self, x: OpenOutputs, batch_data_samples: Sequence[DetDataSample]) -> tuple[Tensor, Tensor]:
        """Return class logits (B, Q, K + 1) and mask logits (B, Q, h, w); the fusion head enlarges what it uses."""
        classes, masks = self(x)
        return classes[-1].float(), masks[-1].float()


@MODELS.register_module()
class EoMTSegHead(QueryHead, SegMask2FormerHead):
    """EoMT's head for semantic segmentation, in an ``mmtr.EncoderDecoder``.

    Args:
        num_queries: Number of learned queries, Q.
        ignore_index: Label of pixels that are in no mask.
        align_corners: As in mmseg's heads, for the resizing to the image.
        kwargs: ``QueryHead``'s.

    Raises:
        UserError: A setting has a value that is not allowed, or does not exist.
    """

    setting_prefix = 'decode_head.'

    def __init__(
        self,
        num_queries: Whole(1, 2**16) = 100,
        ignore_index: Whole(0, 255) = 255,
        align_corners: Flag() = False,
        **kwargs,
    ):
        super().__init__(num_queries=num_queries, **kwargs)
        self.out_channels, self.ignore_index, self.align_corners = self.num_classes, ignore_index, align_corners

    def predict(self, x: OpenOutputs, batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Return the sum over queries of class probability times mask probability: (B, K, height, width)."""
        # mmseg's takes the size of a crop from pad_shape, which is that of the whole image. Masks are of whole patches.
        height, width = x.size
        return super().predict(x, [dict(img_shape=x.padded_size)], test_cfg)[..., :height, :width]
