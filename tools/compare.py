"""Accuracy and speed of several token reductions of one trained model, side by side.

Writes a table (OUT.csv, OUT.json, OUT.md) and a figure (OUT.png, OUT.pdf). The same command goes on where an
interrupted one stopped.
"""
import argparse
import csv
import json
import shlex
import sys
from pathlib import Path

from mmtr.analysis.compare import compare_on_test_data, main_metric, markdown_table, records
from mmtr.analysis.journal import Journal, made_with
from mmtr.analysis.speed import machine
from mmtr.engine import measuring
from mmtr.engine.configs import read_reductions
from mmtr.errors import UserError, command
from mmtr.visualization.trade_off import draw_trade_off

ALL = Path(__file__).resolve().parents[1] / 'configs/reductions/all_methods.py'


def parse_args():
    """The command line."""
    parser = measuring.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('reductions', nargs='?', metavar='REDUCTIONS',
                        help="Python or YAML file with reductions = dict(name=dict(type='TokenAdapter', ...))")
    parser.add_argument('--all', action='store_true',
                        help='in place of REDUCTIONS: every method at several strengths (configs/reductions/'
                             'all_methods.py)')
    parser.add_argument('--out', help='write OUT.csv, OUT.json, OUT.md, OUT.png and OUT.pdf, and go on where an '
                                      'interrupted run stopped')
    args = parser.parse_args()
    if args.all == (args.reductions is not None):
        raise UserError('Give either a file with reductions or --all.')
    return args


def fitting(reductions, backbone, leave_out):
    """The reductions that a backbone can take; what it cannot is an error, or left out and said."""
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


def write(out, report):
    """Write the report of a run as tables and a figure."""
    results = report['results']
    Path(f'{out}.json').write_text(json.dumps(report, indent=1) + '\n')
    Path(f'{out}.md').write_text(markdown_table(results) + '\n')
    rows = list(records(results))
    with open(f'{out}.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    used = report['machine']
    draw_trade_off(results, main_metric(results), [f'{out}.png', f'{out}.pdf'],
                   f'{Path(report["config"]).stem}, {report["images"]} images, {used.get("gpu", used["cpu"])}')


@command
def main():
    """Measure and print."""
    args = parse_args()
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        measuring.check_file(args.out, '--out')
    reductions = {'plain': None, **read_reductions(ALL if args.all else args.reductions)}
    cfg, model = measuring.load(args)
    reductions = fitting(reductions, model.backbone, leave_out=args.all)
    made = made_with(cfg, args.checkpoint, args.device, reductions=reductions)
    with Journal(f'{args.out}.partial', made) if args.out else Journal() as journal:
        if len(journal):
            print(f"Going on after {len(journal)} batches, from '{journal.path}'.", file=sys.stderr)
        try:
            results = compare_on_test_data(cfg, model, reductions, journal)
        except KeyboardInterrupt:
            if args.out:
                raise KeyboardInterrupt(f'Interrupted after {len(journal)} batches; the same command goes on '
                                        'from there.') from None
            raise
        print(markdown_table(results))
        if args.out:
            write(args.out, dict(
                command=shlex.join(sys.argv), config=args.config, checkpoint=args.checkpoint,
                cfg_options=args.cfg_options, machine=machine(args.device),
                images=sum(record['size'] for record in journal), results=results))
            journal.remove()


if __name__ == '__main__':
    main()
