"""The part of panopticapi that mmdet calls, from the definition of PQ; PyPI does not have that package."""

import sys
from collections import defaultdict
from types import ModuleType

import numpy as np


def rgb2id(color):
    color = np.asarray(color).astype(np.int32)  # the package's
    return color[..., 0] + 256 * color[..., 1] + 256**2 * color[..., 2]


def id2rgb(number):
    number = np.asarray(number).astype(np.int64)
    return np.stack((number % 256, number // 256 % 256, number // 256**2), -1).astype(np.uint8)


class PQStatCat:
    """Matches of one category."""

    def __init__(self):
        self.iou, self.tp, self.fp, self.fn = 0.0, 0, 0, 0

    def __iadd__(self, other):
        self.iou, self.tp = self.iou + other.iou, self.tp + other.tp
        self.fp, self.fn = self.fp + other.fp, self.fn + other.fn
        return self


class PQStat:
    """Matches by category; PQ is the sum of IoU over tp + fp / 2 + fn / 2."""

    def __init__(self):
        self.pq_per_cat = defaultdict(PQStatCat)

    def __getitem__(self, category):
        return self.pq_per_cat[category]

    def __iadd__(self, other):
        for category, stat in other.pq_per_cat.items():
            self.pq_per_cat[category] += stat
        return self

    def pq_average(self, categories, isthing):
        results = {}
        for name, category in categories.items():
            stat = self.pq_per_cat[name]
            count = stat.tp + stat.fp / 2 + stat.fn / 2
            if isthing in (None, category['isthing'] == 1) and count:
                results[name] = dict(pq=stat.iou / count, sq=stat.iou / stat.tp if stat.tp else 0.0, rq=stat.tp / count)
        mean = {
            key: float(np.mean([result[key] for result in results.values()])) if results else 0.0
            for key in ('pq', 'sq', 'rq')
        }
        return dict(mean, n=len(results)), results


def install():
    """Make it importable as panopticapi where that is not installed."""
    try:
        import panopticapi.evaluation  # noqa: F401
    except ImportError:
        package, evaluation, utils = (ModuleType(f'panopticapi{part}') for part in ('', '.evaluation', '.utils'))
        evaluation.OFFSET, evaluation.VOID, evaluation.PQStat = 256**3, 0, PQStat
        utils.rgb2id, utils.id2rgb = rgb2id, id2rgb
        package.evaluation, package.utils = evaluation, utils
        sys.modules.update({module.__name__: module for module in (package, evaluation, utils)})
