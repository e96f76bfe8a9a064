"""Measure accuracy and speed of reductions on given images, for a search."""

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import torch
from mmengine.config import Config
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

#: Part of the model that is timed -> key of its time in the results of ``compare_reductions``.
SPEED_OF = dict(model='total_ms', backbone='encoder_ms')


@dataclass(frozen=True)
class Outcome:
    """Metric and time of a reduction and of the plain model on the same images.

    Args:
        accuracy, plain_accuracy: The metric, in its points.
        ms, plain_ms: Time in ms an image.
    """

    accuracy: float
    plain_accuracy: float
    ms: float
    plain_ms: float

    @property
    def speed_up(self) -> float:
        """How many times as fast as the plain model the reduced one is."""
        return self.plain_ms / self.ms

    @property
    def drop(self) -> float:
        """How much lower than the plain model's the metric is, in its points."""
        return self.plain_accuracy - self.accuracy


class Images:
    """Random images, kept in memory: ``search`` to search on, and ``held_out``, as many others, to verify on.

    Args:
        read: Returns the batch of one image, given its index.
        count: Number of images available.
        wanted: Number of images in each of the two sets; fewer if ``count`` is less than twice that.
        seed: Seed of the draw, which is without replacement.

    Raises:
        UserError: There are fewer than two images.
    """

    def __init__(self, read: Callable[[int], dict], count: int, wanted: int, seed: int):
        if count < 2:
            raise UserError(f'There are {count} images, and at least 2 are needed, one to search and one to verify on.')
        each = min(wanted, count // 2)
        drawn = np.random.default_rng(seed).permutation(count)[: 2 * each].tolist()
        self.search, self.held_out = ([read(i) for i in part] for part in (drawn[:each], drawn[each:]))


class Judge:
    """Measures reductions against the plain model, by labels or by agreement with the plain model's predictions.

    Args:
        cfg: Config of the model, with its test data.
        model: The model, in eval mode, on its device.
        folder: Folder of images without labels; None: the test data of the config, with labels.
        metric: A metric of ``test_evaluator`` of which more is better; None: see ``main_of``.
        speed_of: One of ``SPEED_OF``.
        wanted, seed: See ``Images``.
        clock: Returns the time in seconds.

    Attributes:
        metric: The metric that is measured.
        plain_accuracy: The metric of the plain model, on the images to search on.
        shapes: Shapes (B, channels, H, W) of all batches of images that the backbone gets.
        encoder_share: Share of the plain model's measured time that is the backbone's, 0 to 1.

    Raises:
        UserError: There are too few images, or no such metric; or the metric needs labels, and there are none.
    """

    def __init__(
        self,
        cfg: Config,
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
            # The predictions of the plain model are the labels.
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
        self.shapes = set()
        seen = model.backbone.register_forward_pre_hook(lambda module, args: self.shapes.add(tuple(args[0].shape)))
        plain = self._results(dict(plain=None), self.images.search)['plain']
        seen.remove()
        metrics, self.encoder_share = plain['metrics'], plain['encoder_ms'] / plain[self.key]
        self.metric = main_of(metrics) if metric is None else metric
        if not isinstance(metrics.get(self.metric), float):
            raise UserError(
                f"--metric {self.metric} is none of the config's test_evaluator: it gives {', '.join(metrics)}."
            )
        self.plain_accuracy = metrics[self.metric]

    def __call__(self, reduction: Optional[dict], batches: list[dict]) -> Outcome:
        """Measure ``reduction``, a value of the config key ``token_reduction``, on ``batches``."""
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
    """Return the config of the metric of agreement for a model, its name, and the number of classes."""
    if derives(type(model), CLASSIFIER):
        return dict(type='mmpretrain.Accuracy'), 'accuracy/top1', model.head.num_classes
    if not hasattr(model, 'num_classes'):
        raise UserError(f'--images needs a segmentor or classifier, and the model is a {type(model).__name__}.')
    return dict(type='IoUMetric', iou_metrics=['mIoU']), 'mIoU', model.num_classes


def _pipeline(cfg):
    """The test pipeline of a config without the steps that load annotations; raises ``UserError`` if it has none."""
    steps = (cfg.get('test_dataloader') or {}).get('dataset', {}).get('pipeline')
    if not steps:
        raise UserError('--images reads images as test_dataloader.dataset.pipeline says, and the config has none.')
    return Compose([step for step in steps if not loads_annotations(step)])


class _Named:
    """An optuna trial that prefixes its parameters by a method, so that methods do not share parameters."""

    def __init__(self, trial, method):
        self.trial, self.method = trial, method

    def __getattr__(self, suggest):
        return lambda name, *args, **kwargs: getattr(self.trial, suggest)(f'{self.method}.{name}', *args, **kwargs)
