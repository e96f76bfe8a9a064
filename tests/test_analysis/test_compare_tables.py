import json

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from mmtr.analysis.compare import build_evaluator, compare_reductions
from tests.drawn_coco import METAINFO, draw_coco


class Perfect(nn.Module):
    """A detector that finds exactly what an annotation file has in the images of a batch."""

    def __init__(self, annotations):
        super().__init__()
        self.backbone, self.annotations = nn.Identity(), annotations
        self.backbone.token_reducer = None

    def test_step(self, batch):
        from mmdet.structures import DetDataSample

        self.backbone(torch.zeros(1))
        samples = []
        for number in batch['numbers']:
            found = [each for each in self.annotations if each['image_id'] == number]
            boxes = torch.tensor([each['bbox'] for each in found]).reshape(-1, 4).float()
            boxes[:, 2:] += boxes[:, :2]
            sample = DetDataSample(metainfo=dict(img_id=number, ori_shape=(64, 64)))
            sample.pred_instances = InstanceData(
                bboxes=boxes,
                scores=torch.ones(len(found)),
                labels=torch.tensor([each['category_id'] // 10 - 1 for each in found], dtype=torch.long),
            )
            samples.append(sample)
        return samples


def test_objects_in_images_that_were_not_run_are_not_missed(tmp_path):
    pytest.importorskip('mmdet')
    file = draw_coco(tmp_path, counts=(1, 2, 3, 2)) / 'instances.json'
    model = Perfect(json.loads(file.read_text())['annotations'])
    evaluator = build_evaluator([dict(type='mmdet.CocoMetric', ann_file=str(file))], METAINFO)
    batches = [dict(inputs=[0], numbers=[0]), dict(inputs=[0, 0], numbers=[2, 1])]
    result = compare_reductions(model, dict(plain=None), batches, dict(plain=evaluator))['plain']
    assert result['metrics']['coco/bbox_mAP'] == 1
