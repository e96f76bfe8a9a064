"""Accuracy and speed of settings on given images, for a search."""

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import nn

from mmtr.checks.data import images_in, loads_annotations
from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError

from .compare import build_evaluator, build_reducers, compare_reductions
from .speed import now
from .trade_offs import main_of

#: What a speed-up can be of -> where ``compare_reductions`` has it.
SPEED_OF = dict(model='total_ms', backbone='encoder_ms')


@dataclass(frozen=True)
class Outcome:
    """A reduction beside the plain model on the same images: the metric, and ms an image."""

    accuracy: float
    plain_accuracy: float
    ms: float
    plain_ms: float

    @property
    def speed_up(self) -> float:
        """Of the reduction against plain."""
        return self.plain_ms / self.ms

    @property
    def drop(self) -> float:
        """Of the metric, in its points."""
        return self.plain_accuracy - self.accuracy


class Images:
    """Images to search and to verify on, read at once, drawn without replacement by ``seed``.

    Args:
        read: Gives the batch of one image.
        count: How many images there are.
        wanted: How many to search on, and as many others to verify on; fewer where there are not so many.
        seed: Of the draw.

    Raises:
        UserError: There are fewer than two.
    """

    def __init__(self, read: Callable[[int], dict], count: int, wanted: int, seed: int):
        if count < 2:
            raise UserError(f'There are {count} images, and at least 2 are needed, one to search and one to verify on.')
        each = min(wanted, count // 2)
        drawn = np.random.default_rng(seed).permutation(count)[: 2 * each].tolist()
        self.search, self.held_out = ([read(i) for i in part] for part in (drawn[:each], drawn[each:]))


class Judge:
    """Measures reductions against the plain model of ``model``, by labels or by agreement with its predictions.

    Args:
        cfg: mmengine ``Config`` of the model, with its test data.
        model: In eval mode, on its device.
        folder: Of images without labels; None: the test data of the config, with labels.
        metric: A metric of ``test_evaluator`` of which more is better; None: see ``main_of``.
        speed_of: One of ``SPEED_OF``.
        wanted: See ``Images``.
        seed: See ``Images``.
        clock: Gives the time in seconds.

    Attributes:
        metric: The metric that is measured.
        plain_accuracy: Of the plain model, on the images to search on.

    Raises:
        UserError: There are too few images, or no such metric; or labels are needed for it, and there are none.
    """

    def __init__(
        self,
        cfg,
        model: nn.Module,
        folder: Optional[str],
        metric: Optional[str],
        speed_of: str,
        wanted: int,
        seed: int,
        clock: Callable[[], float] = now,
    ):
        self.model, self.key, self.clock = model, SPEED_OF[speed_of], clock
        if folder is None:
            self.evaluator = cfg.test_evaluator
            loader = Runner.build_dataloader({**cfg.test_dataloader, 'num_workers': 0, 'persistent_workers': False})
            self.metainfo = loader.dataset.metainfo
            self.images = Images(lambda i: loader.collate_fn([loader.dataset[i]]), len(loader.dataset), wanted, seed)
        else:
            # The plain predictions stand for labels, so that what compares with labels compares with them.
            self.evaluator, own, count = _agreement(model)
            if metric not in (None, own):
                raise UserError(
                    f'--metric {metric} needs labels, and --images has none: with it the metric is {own}, leave '
                    '--metric out.'
                )
            self.metainfo = dict(classes=[str(i) for i in range(count)])
            paths, pipeline = images_in(folder, '**/*'), _pipeline(cfg)
            self.images = Images(
                lambda i: self._labelled(pseudo_collate([pipeline(dict(img_path=str(paths[i])))])),
                len(paths),
                wanted,
                seed,
            )
        metrics = self._results(dict(plain=None), self.images.search)['plain']['metrics']
        self.metric = main_of(metrics) if metric is None else metric
        if not isinstance(metrics.get(self.metric), float):
            raise UserError(
                f"--metric {self.metric} is none of the config's test_evaluator: it gives {', '.join(metrics)}."
            )
        self.plain_accuracy = metrics[self.metric]

    def __call__(self, reduction: Optional[dict], batches: list[dict]) -> Outcome:
        """How ``reduction`` does on ``batches``, the value of the key ``token_reduction``."""
        results = self._results(dict(plain=None, reduced=reduction), batches)
        return Outcome(
            results['reduced']['metrics'][self.metric],
            results['plain']['metrics'][self.metric],
            results['reduced'][self.key],
            results['plain'][self.key],
        )

    @torch.inference_mode()
    def _results(self, reductions, batches):
        reducers = build_reducers(self.model, reductions)
        evaluators = {name: build_evaluator(self.evaluator, self.metainfo) for name in reducers}
        return compare_reductions(self.model, reducers, batches, evaluators, clock=self.clock)

    @torch.inference_mode()
    def _labelled(self, batch):
        build_reducers(self.model, dict(plain=None))
        for sample, predicted in zip(batch['data_samples'], self.model.test_step(batch)):
            if 'pred_label' in predicted:
                sample.set_gt_label(predicted.pred_label.cpu())
            else:
                sample.gt_sem_seg = PixelData(data=predicted.pred_sem_seg.data.cpu())
        return batch


def _agreement(model):
    """What compares a model's predictions with labels: the metric's config, its name, how many classes there are."""
    if derives(type(model), CLASSIFIER):
        return dict(type='mmpretrain.Accuracy'), 'accuracy/top1', model.head.num_classes
    if not hasattr(model, 'num_classes'):
        raise UserError(f'--images needs a segmentor or classifier, and the model is a {type(model).__name__}.')
    return dict(type='IoUMetric', iou_metrics=['mIoU']), 'mIoU', model.num_classes


def _pipeline(cfg):
    """The test pipeline of a config, without what reads annotations."""
    steps = (cfg.get('test_dataloader') or {}).get('dataset', {}).get('pipeline')
    if not steps:
        raise UserError('--images reads images as test_dataloader.dataset.pipeline says, and the config has none.')
    return Compose([step for step in steps if not loads_annotations(step)])


class _Named:
    """An optuna trial that names its parameters after a method, which may share them with no other one."""

    def __init__(self, trial, method):
        self.trial, self.method = trial, method

    def __getattr__(self, suggest):
        return lambda name, *args, **kwargs: getattr(self.trial, suggest)(f'{self.method}.{name}', *args, **kwargs)
