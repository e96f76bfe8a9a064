"""Tables and Pareto fronts of the results of a comparison of reductions."""

import json
from collections.abc import Iterator

from mmtr.errors import UserError


def main_of(metrics: dict) -> str:
    """Return the metric to rank by: mIoU if there is one, else top-1 accuracy, else the first number.

    Raises:
        UserError: No metric is a number.
    """
    numbers = [key for key, value in metrics.items() if isinstance(value, float)]
    if not numbers:
        raise UserError(f'The test_evaluator gives no number to rank by, but {", ".join(metrics) or "nothing"}.')
    return next((key for name in ('mIoU', 'top1') for key in numbers if key.rpartition('/')[2] == name), numbers[0])


def main_metric(results: dict[str, dict]) -> str:
    """Return the metric to rank by: ``main_of`` the first of results."""
    return main_of(next(iter(results.values()))['metrics'])


def _base_and_metrics(results):
    base = next(iter(results.values()))
    return base, [key for key, value in base['metrics'].items() if isinstance(value, float)]


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """List the names of the points (speed, accuracy) that no other point beats in both, the fastest first."""
    front, best = [], float('-inf')
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (-item[1][0], -item[1][1])):
        if accuracy > best:
            front.append(name)
            best = accuracy
    return front


def trade_offs(results: dict[str, dict], metric: str) -> dict[str, tuple[float, float]]:
    """Map each name to (speed-up of the whole test step against the first result, value of ``metric``)."""
    base = next(iter(results.values()))
    return {name: (base['total_ms'] / r['total_ms'], r['metrics'][metric]) for name, r in results.items()}


def front_beyond_plain(points: dict[str, tuple[float, float]]) -> list[str]:
    """List the names on the ``pareto_front`` of points (speed-up, accuracy) whose speed-up is above 1."""
    return [name for name in pareto_front(points) if points[name][0] > 1]


def by_speed(results: dict[str, dict]) -> dict[str, dict]:
    """Sort results from the slowest to the fastest; the first result, plain, stays first."""
    plain, *others = results
    return {name: results[name] for name in (plain, *sorted(others, key=lambda name: -results[name]['total_ms']))}


def table(results: dict[str, dict]) -> list[list[str]]:
    """Format results of ``compare_on_test_data`` as rows of cells, the head first; speed-ups are against the first."""
    base, metrics = _base_and_metrics(results)
    # Some metrics range to 100, others, such as COCO's, to 1.
    digits = {m: 3 if max(abs(r['metrics'][m]) for r in results.values()) <= 1 else 2 for m in metrics}
    rows = [['reduction', *metrics, 'GFLOPs', 'encoder ms', 'encoder speed-up', 'images/s', 'speed-up']]
    for name, r in results.items():
        rows.append(
            [
                name,
                *(f'{r["metrics"][m]:.{digits[m]}f}' for m in metrics),
                f'{r["gflops"]:.2f}',
                f'{r["encoder_ms"]:.1f}',
                f'{base["encoder_ms"] / r["encoder_ms"]:.2f}',
                f'{1e3 / r["total_ms"]:.1f}',
                f'{base["total_ms"] / r["total_ms"]:.2f}',
            ]
        )
    return rows


def records(results: dict[str, dict]) -> Iterator[dict]:
    """Yield results of ``compare_on_test_data`` as flat rows for a CSV file, with the IoU of each class."""
    base, metrics = _base_and_metrics(results)
    for name, r in results.items():
        yield dict(
            reduction=name,
            settings=json.dumps(r['token_reduction']),
            **{m: r['metrics'][m] for m in metrics},
            gflops=r['gflops'],
            tokens_per_layer=r['tokens_per_layer'],
            encoder_ms=r['encoder_ms'],
            encoder_speed_up=base['encoder_ms'] / r['encoder_ms'],
            total_ms=r['total_ms'],
            images_per_s=1e3 / r['total_ms'],
            speed_up=base['total_ms'] / r['total_ms'],
            **{f'IoU {key}': value for key, value in (r['class_iou'] or {}).items()},
        )
