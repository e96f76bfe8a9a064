"""Accuracy and speed of several reductions of one model, measured side by side on the same images."""
import copy
import statistics
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Optional

import torch
from mmengine import ProgressBar
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from torch import nn

from mmtr.analysis.speed import now
from mmtr.apis import apply_token_reduction
from mmtr.reducers import TokenReducer


@contextmanager
def _timed(module: nn.Module, seconds: list[float]):
    """Append how long each forward of ``module`` takes to ``seconds``."""
    started = []
    before = module.register_forward_pre_hook(lambda *_: started.append(now()))
    after = module.register_forward_hook(lambda *_: seconds.append(now() - started.pop()))
    try:
        yield
    finally:
        before.remove()
        after.remove()


def compare_reductions(model: nn.Module, reducers: dict[str, TokenReducer], batches: Iterable, evaluators: dict,
                       progress=None) -> dict[str, dict]:
    """Run every reducer on every batch, in an order that rotates, so that drift of the machine hits all alike.

    Args:
        model: A segmentor or detector in eval mode, whose backbone has a ``token_reducer``.
        reducers: Name to reducer, built for that backbone.
        batches: Of a test dataloader.
        evaluators: Name to mmengine ``Evaluator``.
        progress: Called with the number of batches done.

    Returns:
        Name to the evaluator's metrics, and the median time of an image in ms:
        ``encoder_ms`` of the backbone, ``total_ms`` of the whole test step.
    """
    names = list(reducers)
    encoder, total, images = {n: [] for n in names}, {n: [] for n in names}, 0
    kept = model.backbone.token_reducer
    try:
        for step, batch in enumerate(batches):
            if step == 0:  # threads, caches and memory pools settle
                for reducer in reducers.values():
                    model.backbone.token_reducer = reducer
                    model.test_step(batch)
            size = len(batch['inputs'])
            for name in names[step % len(names):] + names[:step % len(names)]:
                model.backbone.token_reducer = reducers[name]
                seconds: list[float] = []
                with _timed(model.backbone, seconds):
                    start = now()
                    outputs = model.test_step(batch)
                    total[name].append((now() - start) / size)
                encoder[name].append(sum(seconds) / size)
                evaluators[name].process(data_samples=outputs, data_batch=batch)
            images += size
            if progress is not None:
                progress(step + 1)
    finally:
        model.backbone.token_reducer = kept
    return {name: dict(metrics=evaluators[name].evaluate(images),
                       encoder_ms=1e3 * statistics.median(encoder[name]),
                       total_ms=1e3 * statistics.median(total[name])) for name in names}


def compare_on_test_data(cfg, model: nn.Module, reductions: dict[str, Optional[dict]]) -> dict[str, dict]:
    """``compare_reductions`` on the test data and with the test metrics of a config.

    Args:
        cfg: mmengine ``Config`` with ``test_dataloader`` and ``test_evaluator``.
        model: Of that config, on its device, in eval mode.
        reductions: Name to the value of the key ``token_reduction``. Progress is shown on stderr.
    """
    loader = Runner.build_dataloader(cfg.test_dataloader)
    reducers, evaluators = {}, {}
    for name, reduction in reductions.items():
        reducers[name] = apply_token_reduction(model, reduction).backbone.token_reducer
        evaluators[name] = Evaluator(copy.deepcopy(cfg.test_evaluator))
        evaluators[name].dataset_meta = loader.dataset.metainfo
    bar = ProgressBar(len(loader), file=sys.stderr)
    with torch.inference_mode():
        results = compare_reductions(model, reducers, loader, evaluators, lambda _: bar.update())
    print(file=sys.stderr)
    return results


def markdown_table(results: dict[str, dict]) -> str:
    """Results of ``compare_reductions`` as a Markdown table, speed-ups against the first of them."""
    base = next(iter(results.values()))
    metrics = [key for key, value in base['metrics'].items() if isinstance(value, float)]
    rows = [['reduction', *metrics, 'encoder ms', 'encoder speed-up', 'images/s', 'speed-up']]
    for name, r in results.items():
        rows.append([name, *(f'{r["metrics"][m]:.2f}' for m in metrics), f'{r["encoder_ms"]:.1f}',
                     f'{base["encoder_ms"] / r["encoder_ms"]:.2f}', f'{1e3 / r["total_ms"]:.1f}',
                     f'{base["total_ms"] / r["total_ms"]:.2f}'])
    rows.insert(1, ['---'] + ['---:'] * (len(rows[0]) - 1))
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)
