"""MaskDINO's inference: instances, panoptic map and semantic map of an image from the predictions of its queries."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.enlarging import Enlarging
from mmtr.registry import MODELS
from mmtr.settings import Choice

from .head import Prediction


@MODELS.register_module()
class MaskDINOFusionHead(MaskFormerFusionHead):
    """Fusion head with the inference of the released code; it has no parameters.

    Args:
        num_things_classes: Number of thing classes, whose labels come first.
        num_stuff_classes: Number of stuff classes.
        test_cfg: ``instance_on``, ``panoptic_on``, ``semantic_on``: what is predicted; ``max_per_image`` (100): largest
            number of instances; ``score_thr`` (0.25): queries of the panoptic map score above it; ``iou_thr`` (0.8):
            its segments keep at least this share of their mask; ``temperature`` (0.06): of the softmax over classes
            for maps, None: no softmax for a semantic map; ``enlarged``: what is resized to the image before the argmax
            of a semantic map: ``masks``, as in the released panoptic models, or ``classes``, the sums over queries, as
            in the released semantic models.
        kwargs: ``MaskFormerFusionHead``'s.

    Raises:
        UserError: ``test_cfg`` has a panoptic map without a temperature, or another value of ``enlarged``.
    """

    def __init__(
        self, num_things_classes: int = 80, num_stuff_classes: int = 0, test_cfg: Optional[dict] = None, **kwargs
    ):
        test_cfg = dict(
            dict(
                instance_on=True,
                panoptic_on=False,
                semantic_on=False,
                max_per_image=100,
                score_thr=0.25,
                iou_thr=0.8,
                temperature=0.06,
                enlarged='masks',
            ),
            **(test_cfg or {}),
        )
        if test_cfg['panoptic_on'] and test_cfg['temperature'] is None:
            raise UserError('test_cfg.panoptic_on=True needs a test_cfg.temperature, such as 0.06.')
        Choice('masks', 'classes').check('test_cfg.enlarged', test_cfg['enlarged'])
        # The stock panoptic map thresholds scores after the softmax; here queries are selected before it.
        super().__init__(
            num_things_classes,
            num_stuff_classes,
            test_cfg=dict(test_cfg, object_mask_thr=0.0, filter_low_score=True),
            **kwargs,
        )

    def predict(
        self, prediction: Prediction, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> list[dict]:
        """Return a dict for each image, with those of ``ins_results``, ``pan_results``, ``sem_results`` that are on.

        Args:
            prediction: Result of ``MaskDINOHead.predict`` for the batch.
            batch_data_samples: Data samples, with the sizes of the images.
            rescale: Whether results have the size of the original image, or that of the input.
        """
        return [self._predict(*each, rescale) for each in zip(*prediction, batch_data_samples)]

    def _predict(self, scores, boxes, masks, sample, rescale):
        enlarge = Enlarging(sample, rescale)
        results, image = {}, Prediction(scores.float(), boxes.float(), masks.float())
        if self.test_cfg['instance_on']:
            # Boxes are relative to the padded image.
            width, height = (enlarge.padded[i] / enlarge.seen[i] * enlarge.shape[i] for i in (1, 0))
            results['ins_results'] = self.instances(image, enlarge, (width, height), enlarge.shape)
        if self.test_cfg['panoptic_on']:
            results['pan_results'] = self.panoptic(image, enlarge)
        if self.test_cfg['semantic_on']:
            results['sem_results'] = self.semantic(image, enlarge.to_input, enlarge.to_image)
        return results

    def instances(
        self, image: Prediction, enlarge: Callable[[Tensor], Tensor], size: tuple[float, float], shape: tuple[int, int]
    ) -> InstanceData:
        """Select the instances: the best pairs of query and class.

        The score of an instance is that of its class times the mean probability of the pixels in its mask.

        Args:
            image: Prediction of one image.
            enlarge: Resizes masks (N, h, w) to the result.
            size: (width, height) of the padded image at the scale of the result.
            shape: (height, width) of the result.
        """
        scores = image.scores.flatten()
        best, index = scores.topk(min(self.test_cfg['max_per_image'], len(scores)))
        query, labels = index // self.num_classes, index % self.num_classes
        things = labels < self.num_things_classes
        best, query, labels = best[things], query[things], labels[things]
        # A query can be selected with several classes.
        query, inverse = query.unique(return_inverse=True)
        masks = enlarge(image.masks[query])
        inside = masks > 0
        share = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        boxes = bbox_cxcywh_to_xyxy(image.boxes[query]) * image.boxes.new_tensor(size * 2)
        height, width = shape
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height) * 2))
        return InstanceData(bboxes=boxes[inverse], labels=labels, scores=best * share[inverse], masks=inside[inverse])

    def panoptic(self, image: Prediction, enlarge: Callable[[Tensor], Tensor]) -> PixelData:
        """Compute mmdet's panoptic map from the queries with a class score above ``score_thr``."""
        chosen = image.scores.amax(-1) > self.test_cfg['score_thr']
        sharp = image.scores[chosen] / self.test_cfg['temperature']
        nothing = sharp.new_full((len(sharp), 1), -torch.inf)
        return self.panoptic_postprocess(torch.cat((sharp, nothing), 1), enlarge(image.masks[chosen]))

    def semantic(
        self, image: Prediction, to_input: Callable[[Tensor], Tensor], to_image: Callable[[Tensor], Tensor]
    ) -> PixelData:
        """Compute the semantic map: the class at each pixel with the highest sum over queries of score times mask."""
        classes, temperature = image.scores, self.test_cfg['temperature']
        if temperature is not None:
            classes = (classes / temperature).softmax(-1)
        of_masks, masks = self.test_cfg['enlarged'] == 'masks', to_input(image.masks)
        masks = (to_image(masks) if of_masks else masks).sigmoid()
        scores = torch.einsum('qk,qhw->khw', classes, masks)
        scores = scores if of_masks else to_image(scores)
        return PixelData(sem_seg=scores.argmax(0, keepdim=True))
