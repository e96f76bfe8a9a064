"""Metrics of classifiers that keep what they need: stock they keep the scores of all classes for each image."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from mmengine.evaluator import BaseMetric

from mmtr.config.types import derives

# Of ImageNet's 50000 images, all scores are 200 MB.
KEEPS = {'mmpretrain.Accuracy': lambda metric: max(metric.topk), 'mmpretrain.SingleLabelMetric': lambda metric: 1}


class TopScores(BaseMetric):
    """Keeps for a metric that looks at the highest scores of an image alone no other ones.

    Args:
        metric: Of mmpretrain, whose results have a ``pred_score`` (classes,).
        count: How many scores it looks at.
    """

    def __init__(self, metric: BaseMetric, count: int):
        super().__init__(metric.collect_device, metric.prefix)
        self.metric, self.count = metric, count

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """See ``BaseMetric``."""
        self.metric.process(data_batch, data_samples)
        self.results += map(self._packed, self.metric.results)
        self.metric.results.clear()

    def compute_metrics(self, results: list[dict]) -> dict:
        """See ``BaseMetric``."""
        return self.metric.compute_metrics([_unpacked(result) for result in results])

    def _packed(self, result):
        scores = result.get('pred_score')
        if scores is None:  # labels alone
            return result
        # A count above the number of classes is the metric's to refuse.
        values, classes = scores.topk(min(self.count, len(scores)))
        return {**result, 'pred_score': (len(scores), values.tolist(), classes.tolist())}


def _unpacked(result):
    if 'pred_score' not in result:
        return result
    count, values, classes = result['pred_score']
    scores = torch.full((count,), -torch.inf)
    scores[classes] = torch.tensor(values)
    return {**result, 'pred_score': scores}


def with_few_scores(metric: BaseMetric) -> BaseMetric:
    """Return the metric, or, if it keeps more scores than it looks at, one that gives the same."""
    count: Optional[int] = next((of(metric) for name, of in KEEPS.items() if derives(type(metric), name)), None)
    return metric if count is None else TopScores(metric, count)
