"""Export a segmentor, a classifier or an EoMT to ONNX, and check the file against PyTorch on real images."""

import argparse
import logging
import os.path as osp
import sys
from pathlib import Path
from typing import Callable

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmtr.analysis.speed import interleave, machine
from mmtr.cli.launch import writable
from mmtr.config.files import add_options, add_token_reduction, read_config
from mmtr.errors import command
from mmtr.export import onnx as export
from mmtr.export.pixels import of_pixels
from mmtr.files import written_whole
from mmtr.inference.model import build_model, image_channels, load_weights
from mmtr.reducers.words import reductions_in_words


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='of a segmentor, a classifier or an EoMT, with or without token_reduction')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', required=True, metavar='F.onnx', help='the file to write')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help="pixels; default: the config's sliding window, else its training crop; of a classifier or EoMT, img_size",
    )
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='PATH',
        help='images or folders of images to check on, resized to the shape; default: the first 3 of the test data',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-3,
        help='how far logits, or scores, may differ (default 0.001): the farthest, of a reduced model the median',
    )
    parser.add_argument('--repeats', type=int, default=5, help='timed rounds (default 5); 0: none')
    parser.add_argument('--threads', type=int, help='CPU threads of torch and onnxruntime')
    add_options(parser)
    add_token_reduction(parser)
    return parser.parse_args()


def print_speed(model: nn.Module, run: Callable, image: Tensor, repeats: int) -> None:
    """Time PyTorch and onnxruntime in turns on one image (C, H, W), and print both."""
    whole, pixels = of_pixels(model), image.unsqueeze(0)

    def eager():
        with torch.inference_mode():
            whole(pixels)

    times = interleave({'PyTorch': eager, 'onnxruntime': lambda: run(None, {'image': pixels.numpy()})}, repeats)
    eager, onnx = (times[name].median for name in ('PyTorch', 'onnxruntime'))
    used = machine()
    print(
        f'ms/image: PyTorch {1e3 * eager:.1f}, onnxruntime {1e3 * onnx:.1f}, {eager / onnx:.2f}x as fast; median of '
        f'{repeats} in turns, {used["threads"]} threads of {used["cpu"]}'
    )


@command
def main() -> None:
    """Export, check, time."""
    args = parse_args()
    export.check_packages()
    writable(osp.dirname(osp.abspath(args.out)), '--out')
    if args.threads:
        torch.set_num_threads(args.threads)
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    cfg = read_config(args)
    shape = tuple(args.shape or export.default_shape(cfg))
    model = build_model(cfg)
    whole = of_pixels(model)
    channels = image_channels(model)
    images = export.read_images(args.images, shape, channels) if args.images else export.test_images(cfg, 3, shape)
    what = f'{len(images)} images'
    if len(images) == 1:  # the check needs a batch
        images, what = [*images, images[0].flip(-1)], 'An image and its mirror image'
    load_weights(model, args.checkpoint)
    for line in reductions_in_words(model):
        print(line, file=sys.stderr)
    # The file gets its name only after it has passed the check.
    with written_whole(args.out) as partial:
        unchecked = Path(partial)
        export.export_onnx(model, unchecked, shape)
        run = export.session(unchecked).run
        differences = export.compare_with_onnx(model, run, images)
        print(f'{what}, onnxruntime against PyTorch, whose batches are of 1:')
        for found in differences:
            print(
                f'  batches of {found.batch}: {whole.outputs[0]} differ by at most {found.largest:.2g}, in the median '
                f'{whole.unit} by {found.median:.2g}; the same label in {found.same_label:.3%} of the {whole.unit}s'
            )
        export.check_difference(model, differences, args.tolerance)
        if args.repeats > 0:
            print_speed(model, run, images[0], args.repeats)
    print(f'Wrote {args.out}: image (batch, {channels}, {shape[0]}, {shape[1]}) uint8 -> {" and ".join(whole.outputs)}')


if __name__ == '__main__':
    main()
