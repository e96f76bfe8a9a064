"""Compare accuracy and speed of several token reductions of one trained model.

Prints a table, from the slowest to the fastest, and writes it (OUT.csv, OUT.json, OUT.md) with a figure (OUT.png,
OUT.pdf). After an interruption, the same command goes on where it stopped.
"""

import argparse
import csv
import json
import shlex
import sys
from pathlib import Path
from typing import Optional

from torch import nn

from mmtr.analysis.compare import compare_on_test_data
from mmtr.analysis.journal import Journal, made_with
from mmtr.analysis.speed import machine
from mmtr.analysis.trade_offs import by_speed, front_beyond_plain, main_metric, records, table, trade_offs
from mmtr.cli import measuring
from mmtr.config.files import read_reductions
from mmtr.errors import UserError, command
from mmtr.files import write_text
from mmtr.reports.benchmarks import comparison, machine_in_words
from mmtr.visualization.trade_off import draw_trade_off
from mmtr.words import aligned_rows

ALL = Path(__file__).resolve().parents[1] / 'configs/reductions/all_methods.py'


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises ``UserError`` unless reductions come from either a file or --all."""
    parser = measuring.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        'reductions',
        nargs='?',
        metavar='REDUCTIONS',
        help="Python or YAML file with reductions = dict(name=dict(type='TokenAdapter', ...))",
    )
    parser.add_argument(
        '--all',
        action='store_true',
        help='in place of REDUCTIONS: every method at several strengths (configs/reductions/all_methods.py)',
    )
    parser.add_argument(
        '--num-images',
        type=measuring.positive,
        metavar='N',
        help='of the test data, at even distances from the first to the last; default all',
    )
    parser.add_argument(
        '--out', help='write OUT.csv, OUT.json, OUT.md, OUT.png and OUT.pdf, and go on where an interrupted run stopped'
    )
    args = parser.parse_args()
    if args.all == (args.reductions is not None):
        raise UserError('Give either a file with reductions or --all.')
    return args


def fitting(reductions: dict[str, Optional[dict]], backbone: nn.Module, leave_out: bool) -> dict[str, Optional[dict]]:
    """Select the reductions that work with a backbone.

    Args:
        leave_out: Leave the others out and name them on stderr; False: they are errors.

    Raises:
        UserError: A reduction does not work, and ``leave_out`` is False.
    """
    kept = {}
    for name, reduction in reductions.items():
        try:
            backbone.build_reducer(reduction)
            kept[name] = reduction
        except UserError as error:
            if not leave_out:
                raise UserError(f"'{name}': {error}") from error
            print(f"Left out '{name}': {error}", file=sys.stderr)
    return kept


def write(out: str, report: dict) -> None:
    """Write the report of a run as tables and a figure, to files whose names begin with ``out``."""
    results = report['results']
    write_text(f'{out}.json', json.dumps(report, indent=1) + '\n')
    write_text(f'{out}.md', comparison({**report, 'results': by_speed(results)}) + '\n')
    rows = list(records(results))
    with open(f'{out}.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw_trade_off(
        results,
        main_metric(results),
        [f'{out}.png', f'{out}.pdf'],
        f'{Path(report["config"]).stem}, {report["images"]} images, {machine_in_words(report["machine"])}',
    )


def in_words(report: dict) -> str:
    """Format the table of a run with its front marked, and notes on it."""
    results, metric = report['results'], main_metric(report['results'])
    front = front_beyond_plain(trade_offs(results, metric))
    head, *rows = table(by_speed(results))
    marked = [head, *([f'* {row[0]}' if row[0] in front else f'  {row[0]}', *row[1:]] for row in rows)]
    return (
        f'{aligned_rows(marked)}\n'
        f'{report["images"]} images, {machine_in_words(report["machine"])}. Times: medians, in turns on '
        'each batch; GFLOPs: of the first image.\n* faster than plain, and no other setting is better both in '
        f'{metric} and in speed.'
    )


@command
def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        measuring.check_file(args.out, '--out')
    reductions = {'plain': None, **read_reductions(ALL if args.all else args.reductions)}
    cfg, model = measuring.load(args)
    reductions = fitting(reductions, model.backbone, leave_out=args.all)
    made = made_with(cfg, args.checkpoint, args.device, reductions=reductions, number_of_images=args.num_images)
    with Journal(f'{args.out}.partial', made) if args.out else Journal() as journal:
        if len(journal):
            print(f"Going on after {len(journal)} batches, from '{journal.path}'.", file=sys.stderr)
        try:
            results = compare_on_test_data(cfg, model, reductions, journal, args.num_images)
        except KeyboardInterrupt:
            if args.out:
                raise KeyboardInterrupt(
                    f'Interrupted after {len(journal)} batches; the same command goes on from there.'
                ) from None
            raise
        report = dict(
            command=shlex.join(sys.argv),
            config=args.config,
            checkpoint=args.checkpoint,
            cfg_options=args.cfg_options,
            machine=machine(args.device),
            images=sum(record['size'] for record in journal),
            results=results,
        )
        print(in_words(report))
        if args.out:
            write(args.out, report)
            journal.remove()


if __name__ == '__main__':
    main()
