"""EoMT as a detector of mmdet, and its fusion head."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmdet.models.detectors import MaskFormer
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.backbones.common.open_outputs import OpenOutputs
from mmtr.models.enlarging import Enlarging
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.registry import MODELS
from mmtr.settings import Whole


@MODELS.register_module()
class EoMTFusionHead(MaskFormerFusionHead):
    """mmdet's ``MaskFormerFusionHead``, which enlarges the masks of the chosen queries alone; it has no parameters.

    Args:
        num_things_classes, num_stuff_classes: As in the head.
        test_cfg: ``panoptic_on`` (True) and ``instance_on`` (False): what is predicted; ``object_mask_thr`` (0.8):
            queries of the panoptic map score above it; ``iou_thr`` (0.8): its segments keep at least this share of
            their mask; ``filter_low_score`` (True): they have pixels of a probability from 0.5 on alone;
            ``max_per_image`` (100): largest number of instances.
        kwargs: mmdet's.

    Raises:
        UserError: A setting has a value that is not allowed, or does not exist.
    """

    DEFAULTS = dict(
        panoptic_on=True, instance_on=False, object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True, max_per_image=100
    )

    def __init__(
        self, num_things_classes: int = 80, num_stuff_classes: int = 53, test_cfg: Optional[dict] = None, **kwargs
    ):
        unknown = sorted((test_cfg or {}).keys() - self.DEFAULTS)
        if unknown:
            raise UserError(f'test_cfg has {unknown[0]!r}: choose from {", ".join(self.DEFAULTS)}.')
        test_cfg = {**self.DEFAULTS, **(test_cfg or {})}
        Whole(1, 2**16).check('test_cfg.max_per_image', test_cfg['max_per_image'])
        super().__init__(num_things_classes, num_stuff_classes, test_cfg=test_cfg, **kwargs)

    def predict(
        self, classes: Tensor, masks: Tensor, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> list[dict]:
        """Return a dict for each image, with those of ``ins_results`` and ``pan_results`` that are on.

        Args:
            classes: (B, Q, K + 1) class logits.
            masks: (B, Q, h, w) mask logits.
            batch_data_samples: Data samples, with the sizes of the images.
            rescale: Whether results have the size of the original image, or that of the input.
        """
        return [self._predict(*each, rescale) for each in zip(classes, masks, batch_data_samples)]

    def _predict(self, classes, masks, sample, rescale):
        results, enlarge = {}, Enlarging(sample, rescale)
        if self.test_cfg['panoptic_on']:
            scores, labels = classes.softmax(-1).max(-1)
            chosen = (scores > self.test_cfg['object_mask_thr']) & (labels != self.num_classes)
            results['pan_results'] = self.panoptic_postprocess(classes[chosen], enlarge(masks[chosen]))
        if self.test_cfg['instance_on']:
            scores = classes.softmax(-1)[:, :-1].flatten()
            # The best pairs of query and class, as the stock method finds them among all queries.
            best = scores.topk(min(self.test_cfg['max_per_image'], len(scores))).indices
            chosen = (best // self.num_classes).unique()
            results['ins_results'] = self.instance_postprocess(classes[chosen], enlarge(masks[chosen]), len(best))
        return results

    def instance_postprocess(self, mask_cls: Tensor, mask_pred: Tensor, count: Optional[int] = None):
        """Select instances as mmdet; ``count``: number of pairs of query and class, at most ``max_per_image``."""
        kept = self.test_cfg
        self.test_cfg = dict(kept, max_per_image=kept['max_per_image'] if count is None else count)
        try:
            return super().instance_postprocess(mask_cls, mask_pred)
        finally:
            self.test_cfg = kept


@MODELS.register_module()
class EoMT(ReductionLosses, MaskFormer):
    """EoMT (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025) for mmdet.

    Images are normalised here, and not by the data preprocessor: they are padded with black, as the released models
    were trained, and mmdet pads after the normalisation.

    Args:
        backbone: Config of a plain ViT of mmtr.
        panoptic_head: Config of an ``EoMTHead``, whatever the task.
        panoptic_fusion_head: Config of the fusion head; None: ``EoMTFusionHead``.
        mean, std: Mean and standard deviation of each channel of images, 0 to 255; those of ImageNet.
        kwargs: ``MaskFormer``'s. ``test_cfg`` has the options of ``EoMTFusionHead``.

    Raises:
        UserError: See ``ReductionLosses``; or the backbone cannot leave layers to a head; or the data preprocessor
            normalises images, or does not pad them to whole patches.
    """

    def __init__(
        self,
        backbone: dict,
        panoptic_head: dict,
        panoptic_fusion_head: Optional[dict] = None,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        **kwargs,
    ):
        classes = {
            key: panoptic_head[key] for key in ('num_things_classes', 'num_stuff_classes') if key in panoptic_head
        }
        fusion = panoptic_fusion_head or dict(type='mmtr.EoMTFusionHead', **classes)
        super().__init__(
            backbone, panoptic_head=ConfigDict(panoptic_head), panoptic_fusion_head=ConfigDict(fusion), **kwargs
        )
        if getattr(self.data_preprocessor, '_enable_normalize', False):
            raise UserError(
                'data_preprocessor has mean and std, but an EoMT normalises images itself, after they are padded: give '
                'mean and std to the model, and none to data_preprocessor.'
            )
        patch = self.backbone.patch_size
        divisor = getattr(self.data_preprocessor, 'pad_size_divisor', patch)
        if divisor % patch:
            raise UserError(
                f'data_preprocessor.pad_size_divisor={divisor} must be a multiple of the patches of {patch} pixels, '
                f'such as {self.backbone.img_size[0]}, the size of training images: masks are of whole patches.'
            )
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def _num_classes(self):
        return self.num_classes

    def _head(self):
        return self.panoptic_head

    def extract_feat(self, batch_inputs: Tensor) -> OpenOutputs:
        """Normalise images (B, channels, height, width) of 0 to 255, and run the layers without queries."""
        return super().extract_feat((batch_inputs - self.mean) / self.std)
