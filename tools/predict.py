"""Predict one image, a folder of images or a video, and write the predictions as pictures.

Example: tools/predict.py configs/segmenter_vit_tadapter_demo.py demo/segmenter_vit_demo.pth photo.jpg --compare
"""

import argparse
import logging
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmtr.analysis.compare import progress_bar
from mmtr.analysis.speed import machine
from mmtr.cli.launch import writable
from mmtr.cli.measuring import add_machine, positive, use_machine
from mmtr.config.files import add_options, add_token_reduction, read_config
from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError, command
from mmtr.inference.inferencers import build_inferencer, dataset_meta, reads_images
from mmtr.inference.media import open_source
from mmtr.inference.model import build_model, load_weights
from mmtr.inference.side_by_side import Predictor, SideBySide, plain_and_own
from mmtr.reducers.words import reductions_in_words


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises ``UserError`` for --repeats without --compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a segmentor, detector or classifier, with or without token reduction')
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    parser.add_argument('input', type=Path, metavar='IMAGE|FOLDER|VIDEO')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/predictions'),
        help='folder for pictures of the same names (default work_dirs/predictions)',
    )
    parser.add_argument(
        '--compare',
        action='store_true',
        help='the model without its reduction beside it: pictures, times, where they differ',
    )
    parser.add_argument(
        '--repeats', type=positive, help='with --compare: timed runs of each image (default 5; 1 of a frame of a video)'
    )
    parser.add_argument('--score-thr', type=float, help='instances above this score count (default 0.3)')
    add_machine(parser)
    add_options(parser)
    add_token_reduction(parser)
    args = parser.parse_args()
    if args.repeats and not args.compare:
        raise UserError('--repeats is how often --compare times each image: give both or neither.')
    return args


def load(args: argparse.Namespace) -> tuple[Config, nn.Module, dict]:
    """Load the config, the model on its device, and the names and colours of its classes.

    Raises:
        UserError: Config or checkpoint cannot be read or do not fit, or the config has no model or test data.
    """
    cfg = read_config(args)
    if not reads_images(cfg):
        raise UserError(f"Config '{args.config}' must have a model and a test_dataloader, whose pipeline reads images.")
    model = build_model(cfg)
    meta = load_weights(model, args.checkpoint)
    drawn_with, absent = dataset_meta(cfg, meta, model)
    if derives(type(model), CLASSIFIER):  # whose classes are written
        absent = [key for key in absent if key == 'classes']
    if absent:
        what = ' and '.join(dict(classes='names', palette='colours')[key] for key in absent)
        print(
            f"Neither '{args.checkpoint}' nor the test data of '{args.config}' has {what} for the model's classes: "
            'they are made up.',
            file=sys.stderr,
        )
    return cfg, model.to(args.device), drawn_with


@command
def main() -> None:
    """Predict, draw, compare."""
    args = parse_args()
    use_machine(args)
    writable(args.out, '--out')
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    source = open_source(args.input)
    cfg, model, drawn_with = load(args)
    for line in reductions_in_words(model):
        print(line, file=sys.stderr)
    reducers = plain_and_own(model) if args.compare else None
    inferencer = build_inferencer(cfg, model, drawn_with)
    if args.compare:
        predictor = SideBySide(inferencer, reducers, args.repeats or source.repeats, args.score_thr)
    else:
        predictor = Predictor(inferencer, args.score_thr)
    args.out.mkdir(parents=True, exist_ok=True)
    with source.writer(args.out) as write, progress_bar(len(source), unit=source.unit) as bar:
        for picture in source:
            drawn, words = predictor(picture)
            write(picture.name, drawn)
            if words and source.unit == 'image':
                bar.write(f'{picture.name}: {words}')
            bar.update()
    if args.compare and predictor.pixels:
        print(predictor.table())
        print(f'Machine: {", ".join(f"{key} {value}" for key, value in machine(args.device).items())}')
    print(f'Written to {args.out}')
    if source.unread:
        print(
            f'{len(source.unread)} of {len(source)} images could not be read: {", ".join(map(str, source.unread))}',
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == '__main__':
    main()
