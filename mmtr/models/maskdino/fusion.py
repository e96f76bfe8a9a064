"""From MaskDINO's predictions to instances, panoptic and semantic maps of the image."""

from collections.abc import Sequence
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmtr.errors import UserError
from mmtr.registry import MODELS
from mmtr.settings import Choice

from .head import Prediction


@MODELS.register_module()
class MaskDINOFusionHead(MaskFormerFusionHead):
    """Inference of the release: no parameters.

    ``test_cfg``: ``instance_on``, ``panoptic_on``, ``semantic_on``; ``max_per_image`` (100) instances; queries above
    ``score_thr`` (0.25) take part in the panoptic map, and segments that keep ``iou_thr`` (0.8) of their mask; a
    softmax of ``temperature`` (0.06) sharpens the classes of maps, None leaves those of a semantic map as they are.
    ``enlarged`` names what is brought to the size of the image before the best class of a semantic map is chosen: the
    ``masks``, as in the release's panoptic models, or the sums of the ``classes``, as in its semantic ones.

    Raises:
        UserError: ``test_cfg`` asks for a panoptic map without a temperature, or its ``enlarged`` is neither.
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
        # The stock map thresholds sharpened scores; here the queries were chosen before.
        super().__init__(
            num_things_classes,
            num_stuff_classes,
            test_cfg=dict(test_cfg, object_mask_thr=0.0, filter_low_score=True),
            **kwargs,
        )

    def predict(
        self, prediction: Prediction, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> list[dict]:
        """Of each image a dict with ``ins_results``, ``pan_results``, ``sem_results``, as far as they are on.

        Args:
            prediction: ``Prediction`` of the batch, of ``MaskDINOHead.predict``.
            batch_data_samples: The samples, for the shapes of their images.
            rescale: Results are of the original image's size, else of the size that the model saw.
        """
        return [self._predict(*each, rescale) for each in zip(*prediction, batch_data_samples)]

    def _predict(self, scores, boxes, masks, sample, rescale):
        meta = sample.metainfo
        padded, seen = tuple(meta['batch_input_shape']), tuple(meta['img_shape'][:2])
        shape = tuple(meta['ori_shape'][:2]) if rescale else seen

        def resize(maps, size):
            return F.interpolate(maps.unsqueeze(1), size, mode='bilinear', align_corners=False).squeeze(1)

        def to_input(masks):
            return resize(masks, padded)

        def to_image(maps):
            maps = maps[..., : seen[0], : seen[1]]
            return maps if shape == seen else resize(maps, shape)

        def enlarge(masks):
            return to_image(to_input(masks))

        results, image = {}, Prediction(scores.float(), boxes.float(), masks.float())
        if self.test_cfg['instance_on']:
            # Boxes are in shares of the padded image.
            width, height = (padded[i] / seen[i] * shape[i] for i in (1, 0))
            results['ins_results'] = self.instances(image, enlarge, (width, height), shape)
        if self.test_cfg['panoptic_on']:
            results['pan_results'] = self.panoptic(image, enlarge)
        if self.test_cfg['semantic_on']:
            results['sem_results'] = self.semantic(image, to_input, to_image)
        return results

    def instances(
        self, image: Prediction, enlarge: Callable[[Tensor], Tensor], size: tuple[float, float], shape: tuple[int, int]
    ) -> InstanceData:
        """The best pairs of query and class; a score is the class's times the mean of the mask inside itself."""
        scores = image.scores.flatten()
        best, index = scores.topk(min(self.test_cfg['max_per_image'], len(scores)))
        query, labels = index // self.num_classes, index % self.num_classes
        things = labels < self.num_things_classes
        best, query, labels = best[things], query[things], labels[things]
        # A query may be there with several classes.
        query, inverse = query.unique(return_inverse=True)
        masks = enlarge(image.masks[query])
        inside = masks > 0
        share = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
        boxes = bbox_cxcywh_to_xyxy(image.boxes[query]) * image.boxes.new_tensor(size * 2)
        height, width = shape
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height) * 2))
        return InstanceData(bboxes=boxes[inverse], labels=labels, scores=best * share[inverse], masks=inside[inverse])

    def panoptic(self, image: Prediction, enlarge: Callable[[Tensor], Tensor]) -> PixelData:
        """mmdet's panoptic map of the queries above the threshold, with sharpened classes."""
        chosen = image.scores.amax(-1) > self.test_cfg['score_thr']
        sharp = image.scores[chosen] / self.test_cfg['temperature']
        nothing = sharp.new_full((len(sharp), 1), -torch.inf)
        return self.panoptic_postprocess(torch.cat((sharp, nothing), 1), enlarge(image.masks[chosen]))

    def semantic(
        self, image: Prediction, to_input: Callable[[Tensor], Tensor], to_image: Callable[[Tensor], Tensor]
    ) -> PixelData:
        """At every pixel the class with the highest sum over the queries of class times mask."""
        classes, temperature = image.scores, self.test_cfg['temperature']
        if temperature is not None:
            classes = (classes / temperature).softmax(-1)
        of_masks, masks = self.test_cfg['enlarged'] == 'masks', to_input(image.masks)
        masks = (to_image(masks) if of_masks else masks).sigmoid()
        scores = torch.einsum('qk,qhw->khw', classes, masks)
        scores = scores if of_masks else to_image(scores)
        return PixelData(sem_seg=scores.argmax(0, keepdim=True))
