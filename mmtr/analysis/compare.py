"""Compare several reductions of one model: accuracy and speed, measured in turns on the same images."""

import copy
import statistics
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from itertools import islice
from numbers import Real
from typing import Callable, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from mmtr.apis import apply_token_reduction
from mmtr.reducers import TokenReducer

from .flops import count_flops, schedule_in_words, token_schedule
from .journal import Journal
from .speed import now
from .top_scores import with_few_scores


@contextmanager
def _timed(module: nn.Module, seconds: list[float], clock: Callable[[], float]):
    """Append the time of each forward pass of ``module`` to ``seconds``."""
    started = []
    before = module.register_forward_pre_hook(lambda *_: started.append(clock()))
    after = module.register_forward_hook(lambda *_: seconds.append(clock() - started.pop()))
    try:
        yield
    finally:
        before.remove()
        after.remove()


def compare_reductions(
    model: nn.Module,
    reducers: dict[str, TokenReducer],
    batches: Iterable,
    evaluators: dict,
    journal: Optional[Journal] = None,
    progress: Optional[Callable[[], object]] = None,
    clock: Callable[[], float] = now,
) -> dict[str, dict]:
    """Run every reducer on every batch, in a rotating order, so that a drift of the machine's speed affects all alike.

    Args:
        model: A segmentor or detector in eval mode, whose backbone has a ``token_reducer``.
        reducers: Name -> reducer, built for that backbone.
        batches: Batches of a test dataloader.
        evaluators: Name -> mmengine ``Evaluator``.
        journal: Stores the results of each batch; batches that it holds already are not run again.
        progress: Called after each batch.
        clock: Returns the time in seconds.

    Returns:
        Name -> dict with ``metrics``, of the evaluator; ``class_iou``, of mmseg's metric the IoU of each class in
        percent, None for a class that occurs nowhere; and the median time of an image in ms, ``encoder_ms`` of the
        backbone and ``total_ms`` of the whole test step.
    """
    journal = Journal() if journal is None else journal
    names, first = list(reducers), len(journal)
    kept = model.backbone.token_reducer
    try:
        for step, batch in enumerate(islice(batches, first, None), first):
            if step == first:  # warm up threads, caches and memory pools
                for reducer in reducers.values():
                    model.backbone.token_reducer = reducer
                    model.test_step(batch)
            size = len(batch['inputs'])
            record = dict(size=size, encoder={}, total={}, results={})
            for name in names[step % len(names) :] + names[: step % len(names)]:
                model.backbone.token_reducer = reducers[name]
                seconds: list[float] = []
                with _timed(model.backbone, seconds, clock):
                    start = clock()
                    outputs = model.test_step(batch)
                    record['total'][name] = (clock() - start) / size
                record['encoder'][name] = sum(seconds) / size
                evaluators[name].process(data_samples=outputs, data_batch=batch)
                record['results'][name] = [list(metric.results) for metric in evaluators[name].metrics]
                for metric in evaluators[name].metrics:
                    metric.results.clear()
            journal.append(record)
            if progress is not None:
                progress()
    finally:
        model.backbone.token_reducer = kept
    return _summary(names, journal, evaluators)


def _of_seen_images(metric):
    # mmdet's CocoMetric counts the objects of images that were not run as missed: leave those images out.
    api = getattr(metric, '_coco_api', None)
    if api is None or not hasattr(metric, 'img_ids'):
        return
    seen = {result['img_id'] for _, result in metric.results}
    for kind, key in (('images', 'id'), ('annotations', 'image_id')):
        api.dataset[kind] = [each for each in api.dataset[kind] if each[key] in seen]
    api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs


def _summary(names, journal, evaluators):
    encoder, total, images = {n: [] for n in names}, {n: [] for n in names}, 0
    for record in journal:
        images += record['size']
        for name in names:
            encoder[name].append(record['encoder'][name])
            total[name].append(record['total'][name])
            for metric, results in zip(evaluators[name].metrics, record['results'][name]):
                metric.results.extend(results)
    summary = {}
    for name in names:
        class_iou = _class_iou(evaluators[name])  # first: evaluate deletes the results
        for metric in evaluators[name].metrics:
            _of_seen_images(metric)
        metrics = {
            key: float(value) if isinstance(value, Real) else value
            for key, value in evaluators[name].evaluate(images).items()
        }
        summary[name] = dict(
            metrics=metrics,
            class_iou=class_iou,
            encoder_ms=1e3 * statistics.median(encoder[name]),
            total_ms=1e3 * statistics.median(total[name]),
        )
    return summary


def _class_iou(evaluator):
    for metric in evaluator.metrics:
        if isinstance(metric, IoUMetric) and metric.results:
            intersect, union = (sum(areas[i].double() for areas in metric.results) for i in (0, 1))
            return {
                name: 100 * i / u if u else None
                for name, i, u in zip(metric.dataset_meta['classes'], intersect.tolist(), union.tolist())
            }
    return None


def build_reducers(model: nn.Module, reductions: dict[str, Optional[dict]]) -> dict[str, TokenReducer]:
    """Build a reducer for the backbone of ``model`` from each value of the key ``token_reduction``; None: plain."""
    return {
        name: apply_token_reduction(model, reduction).backbone.token_reducer for name, reduction in reductions.items()
    }


def build_evaluator(metrics: Union[dict, list], metainfo: dict) -> Evaluator:
    """Build the ``Evaluator`` of a config's ``test_evaluator`` for a data set with ``metainfo``."""
    evaluator = Evaluator(copy.deepcopy(metrics))
    evaluator.metrics = [with_few_scores(metric) for metric in evaluator.metrics]
    evaluator.dataset_meta = metainfo
    return evaluator


def progress_bar(total: int, done: int = 0, unit: str = 'batch') -> tqdm:
    """Build a progress bar on stderr with the time left; if stderr is a file, it is updated twice a minute."""
    seconds = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=done, file=sys.stderr, mininterval=seconds, maxinterval=seconds, unit=unit)


def test_loader(cfg: Config, num_images: Optional[int] = None) -> DataLoader:
    """Build the test dataloader of a config, of all images or of ``num_images``, evenly spaced from first to last."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    count = len(loader.dataset)
    if num_images is None or num_images >= count:
        return loader
    chosen = Subset(loader.dataset, np.linspace(0, count - 1, num_images).round().astype(int).tolist())
    chosen.metainfo = loader.dataset.metainfo
    return Runner.build_dataloader({**cfg.test_dataloader, 'dataset': chosen})


def compare_on_test_data(
    cfg: Config,
    model: nn.Module,
    reductions: dict[str, Optional[dict]],
    journal: Optional[Journal] = None,
    num_images: Optional[int] = None,
) -> dict[str, dict]:
    """Call ``compare_reductions`` with the test data and test metrics of a config; shows progress on stderr.

    Args:
        cfg: Config with ``test_dataloader`` and ``test_evaluator``.
        model: Model of the config, on its device, in eval mode.
        reductions: Name -> value of the config key ``token_reduction``.
        journal: See ``compare_reductions``.
        num_images: See ``test_loader``.

    Returns:
        As ``compare_reductions``, with ``token_reduction``; for the first image ``gflops``, 10^9 multiply-adds of the
        backbone; and ``tokens_per_layer`` in words, for a method whose number of tokens does not depend on the image.
    """
    journal = Journal() if journal is None else journal
    loader = test_loader(cfg, num_images)
    reducers = build_reducers(model, reductions)
    evaluators = {name: build_evaluator(cfg.test_evaluator, loader.dataset.metainfo) for name in reducers}
    with torch.inference_mode(), progress_bar(len(loader), len(journal)) as bar:
        costs = journal.note('costs', lambda: _costs(model, reducers, loader.collate_fn([loader.dataset[0]])))
        results = compare_reductions(model, reducers, loader, evaluators, journal, bar.update)
    return {name: dict(token_reduction=reductions[name], **result, **costs[name]) for name, result in results.items()}


def _costs(model, reducers, batch):
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:1]))
    model.test_step(batch)
    hook.remove()
    kept, costs = model.backbone.token_reducer, {}
    for name, reducer in reducers.items():
        model.backbone.token_reducer = reducer
        schedule = token_schedule(model.backbone, seen[0].shape[2:]) if reducer.fixed_count else None
        costs[name] = dict(
            gflops=count_flops(model.backbone, seen[0]).total / 1e9,
            tokens_per_layer=schedule and schedule_in_words(schedule),
        )
    model.backbone.token_reducer = kept
    return costs
