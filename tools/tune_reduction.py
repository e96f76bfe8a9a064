"""Search for a token reduction of a trained model that reaches a speed-up, or keeps the accuracy.

--target-speedup finds the most accurate setting of at least that speed-up, --max-drop the fastest setting that loses
at most that much. Accuracy and speed are measured beside the plain model on the same images: on the config's test data
with their labels, or on a folder of images, with the plain model's predictions as labels. The setting that is found is
measured again on images that the search did not see, and written as a config if it reaches the target there.
"""

import argparse
import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config

from mmtr.analysis.compare import progress_bar
from mmtr.analysis.journal import made_with
from mmtr.analysis.judging import SPEED_OF, Judge, Outcome
from mmtr.analysis.speed import machine
from mmtr.analysis.tuning import CLOSE, Target, finished, fronts, import_optuna, open_study, ranked, search, skipped
from mmtr.cli import measuring
from mmtr.cli.healing import healing_changes, with_code
from mmtr.cli.sweeping import predictor
from mmtr.config.files import inherited, with_reduction
from mmtr.errors import UserError, command
from mmtr.files import write_text
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.registry import TOKEN_REDUCERS
from mmtr.words import aligned_rows

VERIFIED = 5  # largest number of settings that are verified, the best first


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = measuring.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        '--out',
        required=True,
        metavar='CONFIG.py',
        help='the config to write; what was tried is kept '
        'in CONFIG.py.trials, from which the same command goes on, also with more --trials',
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--target-speedup', type=float, metavar='X', help='at least X times as fast as plain')
    target.add_argument(
        '--max-drop',
        type=float,
        metavar='Y',
        help='at most Y points of the metric below plain (without labels: below 100)',
    )
    parser.add_argument('--method', nargs='+', metavar='NAME', help='methods to try; default all of them')
    parser.add_argument('--images', metavar='FOLDER', help='images without labels; default the test data of the config')
    parser.add_argument(
        '--metric', help="of the config's test_evaluator; default mIoU, of classifiers top-1 accuracy, else its first"
    )
    parser.add_argument(
        '--num-images',
        type=measuring.positive,
        default=20,
        help='images to search on, and as many others to verify on; default 20',
    )
    parser.add_argument('--trials', type=measuring.positive, default=60, help='settings to try; default 60')
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='of the images and the search. Measured times are the only other thing that two runs differ by',
    )
    parser.add_argument(
        '--sweep',
        metavar='F',
        help=f'file of tools/benchmark.py --sweep: settings predicted to reach less than {CLOSE} of --target-speedup '
        'are not measured',
    )
    parser.add_argument(
        '--heal',
        type=measuring.positive,
        metavar='N',
        help='let the config train what was found for N iterations, without labels: see docs/healing.md',
    )
    parser.add_argument(
        '--speed-of',
        choices=SPEED_OF,
        default='model',
        help='model: the whole test step, which is what one waits for (default); backbone: what '
        "papers' encoder speed-ups are of",
    )
    return parser.parse_args()


def check_settings(args: argparse.Namespace) -> None:
    """Raise a ``UserError`` for options that would fail only after the search."""
    import_optuna()
    measuring.check_file(args.out, '--out')
    if not args.out.endswith('.py') or os.path.exists(args.out):
        raise UserError(f'--out {args.out} must be the name of a new .py file.')
    if args.target_speedup is not None and not args.target_speedup > 0:
        raise UserError(f'--target-speedup {args.target_speedup} must be above 0, and above 1 to be faster.')
    if args.max_drop is not None and not args.max_drop >= 0:
        raise UserError(f'--max-drop {args.max_drop} must be at least 0.')
    if args.sweep and args.target_speedup is None:
        raise UserError(f'--sweep {args.sweep} predicts speed, of which --max-drop needs none: give --target-speedup.')
    if args.seed < 0:
        raise UserError(f'--seed {args.seed} must be at least 0.')


def methods_for(names: Optional[list[str]], backbone: BackboneInfo) -> list[str]:
    """List the methods to try: ``names``, or all that work with the backbone.

    Raises:
        UserError: A method in ``names`` does not work with the backbone, or must be trained.
    """
    TOKEN_REDUCERS.import_from_location()
    fitting = []
    for name in names or sorted(TOKEN_REDUCERS.module_dict):
        try:
            if build_token_reducer(dict(type=name), backbone).trained:
                raise UserError(f'{name} has parameters of its own, which only training sets: choose another method.')
            fitting.append(name.removeprefix('mmtr.'))
        except UserError as error:
            if names:
                raise
            print(f'Left out {name}: {error}', file=sys.stderr)
    return fitting


def in_words(args: argparse.Namespace, outcome: Outcome) -> str:
    """Describe an outcome in comparison with the plain model."""
    what = f'{args.metric} against the plain predictions' if args.images else args.metric
    timed = 'whole test step' if args.speed_of == 'model' else 'backbone'
    return (
        f'{outcome.speed_up:.2f}x as fast as plain ({timed}, {outcome.ms:.1f} ms an image against '
        f'{outcome.plain_ms:.1f}), {what} {outcome.accuracy:.2f} (plain {outcome.plain_accuracy:.2f})'
    )


def table(args: argparse.Namespace, study: Any, count: int) -> str:
    """Format the front of a study and its runners-up as an aligned table.

    Args:
        study: Study of ``open_study``.
        count: Number of images of the search.
    """
    rows = [('', 'method', 'speed-up', args.metric, 'plain', 'settings')]
    for rank, reduction, outcome in fronts(study):
        settings = ', '.join(f'{key}={value}' for key, value in reduction.items() if key != 'type')
        rows.append(
            (
                rank,
                reduction['type'],
                f'{outcome.speed_up:.2f}x',
                f'{outcome.accuracy:.2f}',
                f'{outcome.plain_accuracy:.2f}',
                settings,
            )
        )
    of = f'{len(finished(study))} settings'
    if skipped(study):
        of += f' (and {len(skipped(study))} that were skipped, since they are predicted to be too slow)'
    if len(rows) == 1:
        return f'No setting of {of} is faster than plain.'
    return (
        f'{aligned_rows(rows, words=(0, 1, 5))}\n'
        f'Of {of}, on the {count} images of the search: no other is both more accurate '
        'and faster than one of the front, and none but the front than a runner-up.'
    )


def verified(
    args: argparse.Namespace, study: Any, target: Target, judge: Judge, prepared: Callable[[dict], dict]
) -> tuple[dict, Outcome]:
    """Find the best setting that reaches the target on the held-out images too: return it and its outcome there.

    Args:
        prepared: Maps a setting to what is verified of it.

    Raises:
        UserError: No setting does; names the nearest.
    """
    tried, count = None, len(judge.images.held_out)
    for (reduction, searched), _ in zip(ranked(study, target), range(VERIFIED)):
        if target.shortfall(searched) > 0:
            tried = tried or (reduction, searched, f'on the {len(judge.images.search)} images of the search')
            break
        reduction = prepared(reduction)
        outcome = judge(reduction, judge.images.held_out)
        print(f'On {count} other images: {reduction}: {in_words(args, outcome)}')
        if target.shortfall(outcome) == 0:
            return reduction, outcome
        if tried is None or target.shortfall(outcome) < target.shortfall(tried[1]):
            tried = reduction, outcome, f'on {count} images that the search had not seen'
    if tried is None:
        nearest = max(skipped(study), key=lambda trial: trial.user_attrs['predicted']).user_attrs
        raise UserError(
            f'No setting is predicted to reach {target}, so none was measured; the nearest, {nearest["reduction"]}, is '
            f'predicted to be {nearest["predicted"]:.2f}x as fast as plain: give a lower target, or more methods.'
        )
    reduction, outcome, where = tried
    raise UserError(
        f'No setting reached {target} in {args.trials} trials, so nothing was written; the nearest, '
        f'{reduction}, is {in_words(args, outcome)}, {where}.'
    )


def write_config(args: argparse.Namespace, cfg: Config, reduction: dict, outcome: Outcome, count: int) -> None:
    """Write the config to ``args.out``: its base, the reduction, and as comments what was measured.

    Args:
        cfg: Config of the plain model.
        reduction: Value of the key ``token_reduction``.
        outcome: Its outcome on the held-out images.
        count: Number of these images.
    """
    out = Path(args.out)
    if args.heal:
        changes = healing_changes(cfg, args.checkpoint, args.heal, reduction)
    else:
        changes = with_reduction(cfg, reduction)
    text = inherited(args.config, {**args.cfg_options, **changes}, out.parent)
    lines = [
        f'Found by: {shlex.join(sys.argv)}',
        f'Measured on {count} images that the search did not see: {in_words(args, outcome)}.',
        'Machine: ' + ', '.join(f'{key} {value}' for key, value in machine(args.device).items()),
    ]
    if args.heal:
        lines.append('That is before it is healed. Train it by tools/train.py, and test the checkpoint of that.')
    write_text(out, '\n'.join(f'# {line}' for line in lines) + f'\n{text}')


@command
def main() -> None:
    """Search, verify, write."""
    args = parse_args()
    check_settings(args)
    cfg, model = measuring.load(args, () if args.images else ('test_dataloader',))
    if args.heal:
        healing_changes(cfg, args.checkpoint, args.heal, {})  # a config that cannot be trained is said at once
    backbone, target = model.backbone.token_reducer.backbone, Target(args.target_speedup, args.max_drop)
    methods = methods_for(args.method, backbone)
    judge = Judge(cfg, model, args.images, args.metric, args.speed_of, args.num_images, args.seed)
    args.metric = judge.metric
    if args.max_drop is not None and judge.plain_accuracy <= min(args.max_drop, 1):
        raise UserError(
            f'--max-drop {args.max_drop} lets any setting pass: {judge.metric} of the plain model is '
            f'{judge.plain_accuracy:.3f}, so give a drop on that scale.'
        )
    predict = None
    if args.sweep:
        predict = predictor(args.sweep, model.backbone, judge.shapes, args.device, judge.encoder_share)
    made = made_with(
        cfg,
        args.checkpoint,
        args.device,
        target=vars(target),
        methods=methods,
        images=args.images,
        metric=args.metric,
        number_of_images=args.num_images,
        speed=args.speed_of,
        seed=args.seed,
        sweep=args.sweep and hashlib.sha256(Path(args.sweep).read_bytes()).hexdigest(),
    )
    study = open_study(f'{args.out}.trials', made)
    try:
        with progress_bar(args.trials, len(finished(study)), 'trial') as bar:
            search(
                study,
                lambda reduction: judge(reduction, judge.images.search),
                target,
                methods,
                backbone,
                args.trials,
                args.seed,
                bar.update,
                predict,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f'Interrupted after {len(finished(study))} of {args.trials} trials; the same command goes on from there.'
        ) from None
    print(table(args, study, len(judge.images.search)))
    reduction, outcome = verified(
        args, study, target, judge, lambda found: with_code(cfg, found, backbone) if args.heal else found
    )
    write_config(args, cfg, reduction, outcome, len(judge.images.held_out))
    print(f'Wrote {args.out}')


if __name__ == '__main__':
    main()
