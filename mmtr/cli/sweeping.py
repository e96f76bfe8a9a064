"""Sweeps on the command line: ``tools/benchmark.py`` writes one, ``tools/tune_reduction.py`` reads it."""

import argparse
import json
import shlex
import sys
from collections.abc import Collection
from typing import Callable

import torch
from mmengine import ProgressBar
from torch import nn

from mmtr.analysis.gain import gaining
from mmtr.analysis.prediction import Sweep, read_sweep
from mmtr.analysis.sweep import check_plain, measure_sweep
from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.files import write_text
from mmtr.inference.model import image_channels
from mmtr.words import aligned_rows

from .measuring import autocast, random_images


def check_one(args: argparse.Namespace, specs: list[str]) -> None:
    """Raise a ``UserError`` unless ``--sweep`` of ``tools/benchmark.py`` is given one plain config."""
    if len(specs) > 1:
        raise UserError(
            f'--sweep measures one plain model, and {len(specs)} are given, {", ".join(specs)}: give one config, '
            'without --token-reduction.'
        )
    if args.json:
        raise UserError(f'--json {args.json} is for a comparison, and --sweep writes its own file: leave --json out.')


def write_sweep(args: argparse.Namespace, model: nn.Module) -> None:
    """Measure the sweep of ``tools/benchmark.py``, print its curve, and write it to ``args.sweep``.

    Raises:
        UserError: The backbone is no plain ViT.
    """
    model = apply_token_reduction(model, None)
    check_plain(model.backbone)
    images, compiled = random_images(args, image_channels(model)), {}
    if args.compile:
        # Every number of tokens, and every setting, is a compilation of the same code; see tools/benchmark.py.
        torch._dynamo.config.cache_size_limit = 2048

    def run(module):
        if args.compile and module not in compiled:
            compiled[module] = torch.compile(module, dynamic=False)
        with torch.inference_mode(), autocast(args):
            compiled.get(module, module)(images)

    bars = []

    def progress(done, of):
        if not bars:
            bars.append(ProgressBar(of, file=sys.stderr))
        bars[0].update()

    settings = dict(dtype=args.dtype, compiled=args.compile, device=torch.device(args.device).type)
    sweep = measure_sweep(model, images, run, args.repeats, settings, 'model' in args.part, progress)
    print(file=sys.stderr)
    write_text(args.sweep, json.dumps(dict(command=shlex.join(sys.argv), **vars(sweep)), indent=1))
    head = [] if sweep.head_ms is None else [f'rest of the model {sweep.head_ms:.2f} ms']
    points = [*sweep.curve, dict(tokens='all', **sweep.untouched)]
    rows = [(str(p['tokens']), f'{p["layer_ms"]:.3f}', f'{p["attention_ms"]:.3f}') for p in points]
    print(aligned_rows([('tokens', 'ms a layer', 'without FFN'), *rows], words=()))
    print(
        f'Backbone {sweep.plain_ms:.2f} ms an image, outside its layers {sweep.outside_ms:.2f} ms'
        f'{"".join(f", {each}" for each in head)}; {sweep.place}.\n'
        f'{sum(len(each["measured"]) for each in sweep.own.values())} settings of {len(sweep.own)} variants of methods '
        f'were measured too; the mildest that gains 5 %: {gaining(sweep)}.\n'
        f'Wrote {args.sweep}'
    )


def predictor(
    path: str, backbone: nn.Module, shapes: Collection[tuple[int, ...]], device: str, encoder_share: float
) -> Callable[[dict], float]:
    """Read a sweep for a search: return a function from a value of ``token_reduction`` to its predicted speed-up.

    Args:
        path: File of the sweep.
        backbone: The plain backbone.
        shapes: Shapes (B, channels, H, W) of all batches of images that it gets.
        device: Device of the model.
        encoder_share: Share of the measured time that is the backbone's, 0 to 1.

    Raises:
        UserError: The sweep cannot be read, or is of another machine, backbone, size or precision.
    """
    sweep: Sweep = read_sweep(path)
    remake = 'measure one here with tools/benchmark.py CONFIG --shape H W --sweep FILE.json'
    sizes = sorted({(shape[0], *shape[2:]) for shape in shapes})
    own = (sweep.settings['batch_size'], *sweep.settings['shape'])
    other = sweep.mismatch(backbone, dtype='float32', compiled=False, device=torch.device(device).type)
    if other:
        raise UserError(f"--sweep '{path}' was measured with {other}: {remake}.")
    if sizes != [own]:
        words = [f'{batch}x{height}x{width}' for batch, height, width in (own, *sizes)]
        raise UserError(
            f"--sweep '{path}' was measured with images of {words[0]} (batch, height, width), and the backbone gets "
            f'{", ".join(words[1:5])}: {remake}.'
        )

    def predict(reduction: dict) -> float:
        found = sweep.predict(reduction, backbone.build_reducer(reduction))
        return 1 / (1 - encoder_share + encoder_share / found.speed_up)

    return predict
