import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

pytest.importorskip('mmcv._ext', reason='boxes are joined by an operator of mmcv')
from mmdet.models.test_time_augs import DetTTAModel as Stock  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402

from mmtr.models.detectors import DetTTAModel  # noqa: E402

CFG = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=6)
HEIGHT, WIDTH = 20, 30


def view(direction, count, seed, masks):
    """A view of an image in which ``count`` boxes were found, each with the mask of all of it but its first pixel."""
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH - 9.0, HEIGHT - 9.0])).round()
    found = InstanceData(
        bboxes=torch.cat([corner, corner + 8], 1),
        labels=torch.arange(count) % 2,
        scores=torch.rand(count, generator=generator),
    )
    if masks:
        found.masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(found.masks, found.bboxes.int().tolist()):
            mask[top:bottom, left:right] = True
            mask[top, left] = False
    sample = DetDataSample(
        metainfo=dict(img_id=3, ori_shape=(HEIGHT, WIDTH), flip=direction is not None, flip_direction=direction)
    )
    sample.pred_instances = found
    return sample


class Detector(BaseModel):
    """One that is not run."""

    def forward(self):
        pass


def merged(kind, views):
    model = kind(module=Detector(), tta_cfg=ConfigDict(CFG))
    return model.merge_preds([copy.deepcopy(views)])[0]


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_boxes_are_those_of_mmdet(direction):
    views = [view(None, 5, 0, False), view(direction, 4, 1, False)]
    ours, theirs = (merged(kind, views).pred_instances for kind in (DetTTAModel, Stock))
    assert 2 < len(ours) <= 6
    for key in ('bboxes', 'scores', 'labels'):
        assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize('direction, corner', [('horizontal', (0, 7)), ('vertical', (7, 0)), ('diagonal', (7, 7))])
def test_a_mask_goes_with_its_box(direction, corner):
    sample = merged(DetTTAModel, [view(None, 3, 0, True), view(direction, 4, 1, True)])
    found, seen = sample.pred_instances, set()
    assert sample.img_id == 3
    for box, mask in zip(found.bboxes.int().tolist(), found.masks):
        left, top, right, bottom = box
        inside = mask[top:bottom, left:right]
        (absent,) = (~inside).nonzero().tolist()
        seen.add(tuple(absent))
        assert mask.sum() == inside.sum() == 63
    assert seen == {(0, 0), corner}


def test_nothing_found_is_nothing_merged():
    assert len(merged(DetTTAModel, [view(None, 0, 0, True), view('horizontal', 0, 1, True)]).pred_instances) == 0
