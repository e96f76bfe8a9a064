"""Format the results of tools/benchmark.py for a terminal."""

from collections.abc import Iterator

from mmtr.analysis.flops import schedule_in_words
from mmtr.words import aligned_rows

COLUMNS = (
    'config',
    'ms/image',
    'quartiles',
    'images/s',
    'GFLOPs',
    'M params',
    'peak MB',
    'speed-up',
    'x GFLOPs',
    'x memory',
)


def table(results: list[dict]) -> str:
    """Format the results of one part of the models as an aligned table."""
    rows = [COLUMNS]
    for r in results:
        low, high = r['ms_per_image_quartiles']
        rows.append(
            (
                r['config'],
                f'{r["ms_per_image"]:.1f}',
                f'{low:.1f}-{high:.1f}',
                f'{r["images_per_second"]:.2f}',
                f'{r["gflops"]:.2f}',
                f'{r["parameters"] / 1e6:.2f}',
                f'{r["peak_memory_bytes"] / 1e6:.1f}',
                f'{r["speed_up"]:.2f}x',
                f'{r["gflops_ratio"]:.3f}',
                f'{r["memory_ratio"]:.3f}',
            )
        )
    return aligned_rows(rows)


def notes(results: list[dict]) -> Iterator[str]:
    """Yield remarks on the table of one part, one line each."""
    for r in results:
        if r['tokens_per_layer']:
            yield f'{r["config"]}: tokens per layer {schedule_in_words(r["tokens_per_layer"])}'
        if r['reducer_share'] is not None:
            yield f'{r["config"]}: reducer {r["reducer_share"]:.1%} of the forward pass'
        if r['uncounted']:
            yield (
                f'{r["config"]}: not in GFLOPs: '
                + ', '.join(f'{operator} x{n}' for operator, n in r['uncounted'].items())
            )
        if r['own_weights']:
            yield (
                f'{r["config"]}: {len(r["own_weights"])} tensors with random weights of its own, such as '
                f'{r["own_weights"][0]}'
            )
