"""Write the tables of recorded measurements between the marks of docs/benchmarks.md."""

import json
import re
from pathlib import Path

from mmtr.analysis.trade_offs import main_metric, table
from mmtr.errors import UserError
from mmtr.words import markdown_rows

#: Speed-ups of the encoder at which ``_matched`` compares methods.
SPEED_UPS = (1.2, 1.4, 1.7, 2, 2.5, 3)
REGION = re.compile(r'<!-- (?P<kind>\w+) (?P<path>\S+)(?: (?P<names>[^\n]+))? -->\n.*?<!-- end -->', re.DOTALL)


def refresh(text: str, root: Path) -> str:
    """Rewrite each region ``<!-- KIND PATH [NAME | NAME] -->...<!-- end -->`` of a page from the JSON file at PATH.

    With names, the table has only these rows beside the first.

    Args:
        text: The page, in Markdown.
        root: Folder that the paths are relative to.

    Raises:
        UserError: There is no such kind of table, or the file is not there or holds other results.
    """

    def table(match):
        kind, path = match['kind'], match['path']
        if kind not in TABLES:
            raise UserError(f"'{kind}' is no kind of table: choose one of {', '.join(TABLES)}.")
        files = sorted((root / path).glob('*.json')) if kind == 'resolution' else [root / path]
        try:
            reports = [json.loads(file.read_text()) for file in files]
            if match['names']:
                _keep(reports[0]['results'], match['names'].split(' | '))
            first = match[0].partition('\n')[0]
            return f'{first}\n{TABLES[kind](reports)}\n<!-- end -->'
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"'{path}' holds no results for a table of {kind}: {error!r}.") from error

    return REGION.sub(table, text)


def _keep(results, names):
    for name in list(results)[1:]:
        if name not in names:
            del results[name]
    for name in names:
        results[name]  # raises a KeyError for an unknown name


def machine_in_words(found: dict) -> str:
    """Describe the ``machine`` of a recorded run in a few words."""
    device = found.get('gpu') or f'{found["cpu"]}, {found["threads"]} threads'
    return f'{device}, {found.get("dtype", "float32")}, torch {found["torch"]}'


def _command(command):
    return f'```\npython {command}\n```\n'


def _ms(value):
    # A GPU needs a few milliseconds where a CPU needs thousands.
    return f'{value:.0f}' if value >= 20 else f'{value:.2f}'


def _speed(reports):
    """Table of one run of tools/benchmark.py."""
    (report,) = reports
    rows = [['', 'ms/image', 'quartiles', 'GFLOPs', 'peak MB', 'speed-up', 'predicted', 'reducer']]
    parts = list(dict.fromkeys(r['part'] for r in report['results']))
    for part in parts:
        rows.append([f'**{part}**'] + [''] * 7)
        for r in (r for r in report['results'] if r['part'] == part):
            low, high = r['ms_per_image_quartiles']
            rows.append(
                [
                    r['config'],
                    _ms(r['ms_per_image']),
                    f'{_ms(low)}-{_ms(high)}',
                    f'{r["gflops"]:.1f}',
                    f'{r["peak_memory_bytes"] / 1e6:.0f}',
                    f'{r["speed_up"]:.2f}x',
                    f'{1 / r["gflops_ratio"]:.2f}x',
                    '' if r['reducer_share'] is None else f'{r["reducer_share"]:.1%}',
                ]
            )
    settings = report['settings']
    height, width = settings['shape']
    return (
        _command(report['command']) + f'\n{markdown_rows(rows)}\n\n*{height}x{width} pixels, '
        f'batch {settings["batch_size"]}, {machine_in_words(report["machine"])}. '
        'Predicted: by GFLOPs. Reducer: its share of the forward pass.*'
    )


def comparison(report: dict) -> str:
    """Format a report, the JSON of one run of tools/compare.py: the command, the table, images and machine."""
    return (
        _command(report['command']) + f'\n{markdown_rows(table(report["results"]))}\n\n'
        f'*{report["images"]} images, {machine_in_words(report["machine"])}.*'
    )


def _accuracy(reports):
    (report,) = reports
    return comparison(report)


def _matched(reports):
    """Table of the best setting of each method at each of ``SPEED_UPS``, in one run of tools/compare.py."""
    results = reports[0]['results']
    metric = main_metric(results)
    plain, *others = results.items()
    speed_ups = {name: plain[1]['encoder_ms'] / r['encoder_ms'] for name, r in others}
    families = dict.fromkeys(re.split(r' [(\d]', name)[0] for name in speed_ups)
    rows = [['encoder at least', *(f'{s}x' for s in SPEED_UPS)]]
    for family in families:
        row = [family]
        for least in SPEED_UPS:
            fast = [
                (r['metrics'][metric], name)
                for name, r in others
                if re.split(r' [(\d]', name)[0] == family and speed_ups[name] >= least
            ]
            best = max(fast, default=None)
            row.append('' if best is None else f'{best[0]:.2f} ({best[1].removeprefix(family).strip()})')
        rows.append(row)
    return f'{markdown_rows(rows)}\n\n*{metric}; plain: {plain[1]["metrics"][metric]:.2f}.*'


def _classes(reports):
    """Table of the IoU of each class in one run of tools/compare.py."""
    results = reports[0]['results']
    classes = list(next(iter(results.values()))['class_iou'])
    rows = [['IoU', *classes]]
    rows += [[name, *(f'{r["class_iou"][c]:.1f}' for c in classes)] for name, r in results.items()]
    return markdown_rows(rows)


def _resolution(reports):
    """Table of runs of tools/benchmark.py at several image and batch sizes: images/s, speed-up, peak memory."""
    runs = sorted(
        ((r['results'][0]['parameters'], r['settings']['shape'], r['settings']['batch_size'], r) for r in reports),
        key=lambda run: run[:3],
    )
    longest = max((r['results'] for r in reports), key=len)
    names = [re.sub('.*[@=]', '', r['config']) for r in longest[1:]]
    rows = [
        [
            'model',
            'pixels',
            'batch',
            'dtype',
            'plain images/s',
            'peak MB',
            *(f'{name}: speed-up (predicted)' for name in names),
        ]
    ]
    for _, (height, width), batch, report in runs:
        plain, *others = report['results']
        rows.append(
            [
                plain['config'],
                f'{height}x{width}',
                str(batch),
                report['machine']['dtype'],
                f'{plain["images_per_second"]:.2f}',
                f'{plain["peak_memory_bytes"] / 1e6:.0f}',
                *(f'{r["speed_up"]:.2f}x ({1 / r["gflops_ratio"]:.2f}x)' for r in others),
            ]
        )
    return f'{markdown_rows(rows)}\n\n*{machine_in_words({**reports[0]["machine"], "dtype": "dtype as given"})}.*'


TABLES = dict(speed=_speed, accuracy=_accuracy, matched=_matched, classes=_classes, resolution=_resolution)
