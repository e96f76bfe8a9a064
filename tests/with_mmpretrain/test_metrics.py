"""Metrics of classifiers keep the scores that they look at, and give what stock ones do."""

import os

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from torch import nn

from mmtr.analysis.compare import build_evaluator, compare_reductions
from mmtr.analysis.journal import Journal
from mmtr.visualization.picture import seen_image

METRICS = [
    dict(type='Accuracy', topk=(1, 5)),
    dict(type='Accuracy', thrs=(0.0, 0.02, None), prefix='thresholds'),
    dict(type='SingleLabelMetric'),
    dict(type='SingleLabelMetric', thrs=0.02, average=None, items=('precision', 'support'), prefix='classes'),
]


def samples(count, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = (3 * torch.randn(count, classes, generator=generator)).softmax(1)
    labels = torch.multinomial(scores, 1, generator=generator)
    return [DataSample().set_pred_score(each).set_gt_label(label) for each, label in zip(scores, labels)]


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def test_they_give_what_stock_ones_do():
    found, stock = build_evaluator(METRICS, {}), Evaluator(METRICS)
    for seed in range(3):
        for evaluator in (found, stock):
            evaluator.process(data_samples=samples(40, 30, seed))
    expected = stock.evaluate(120)
    assert 5 < expected['accuracy/top1'] < expected['accuracy/top5'] < 95
    assert found.evaluate(120) == expected


def test_labels_without_scores_are_kept_as_they_are():
    found, stock = (build([dict(type='Accuracy')]) for build in (lambda m: build_evaluator(m, {}), Evaluator))
    for evaluator in (found, stock):
        evaluator.process(data_samples=[DataSample().set_pred_label(i % 3).set_gt_label(i % 2) for i in range(6)])
    assert found.evaluate(6) == stock.evaluate(6)


class Drawn(nn.Module):
    """Gives the scores that a batch holds."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Identity()
        self.backbone.token_reducer = None

    def test_step(self, batch):
        self.backbone(torch.zeros(1))
        return batch['data_samples']


def test_the_journal_holds_no_score_of_a_thousand_classes(tmp_path):
    batches = [dict(inputs=[0] * 10, data_samples=samples(10, 1000, seed)) for seed in range(20)]
    evaluators = dict(plain=build_evaluator(METRICS[:1], {}))
    with Journal(tmp_path / 'kept', {}) as journal:
        found = compare_reductions(Drawn(), dict(plain=None), batches, evaluators, journal)['plain']['metrics']
    stock = Evaluator(METRICS[:1])
    for batch in batches:
        stock.process(data_samples=batch['data_samples'])
    assert found == stock.evaluate(200)
    # All scores are 4 kB an image.
    assert os.path.getsize(tmp_path / 'kept') / 200 < 400


def test_pictures_show_what_the_preprocessor_took():
    from mmpretrain.models import ClsDataPreprocessor

    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    bgr = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)
    for settings in (dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True), dict()):
        preprocessor = ClsDataPreprocessor(**settings)
        assert np.array_equal(seen_image(preprocessor, preprocessor(dict(inputs=[bgr]))['inputs'][0]), rgb)
