"""Measure speed, GFLOPs, parameters and memory of models side by side, in turns in one run.

Example: tools/benchmark.py plain.py plain.py@model.backbone.token_reduction.type=TokenAdapter --shape 640 640
"""

import argparse
import copy
import json
import re
import shlex
import sys
from typing import Any

import torch
from mmengine import ProgressBar
from mmengine.config import Config
from torch import Tensor, nn

from mmtr.analysis.flops import count_flops, token_schedule
from mmtr.analysis.speed import interleave, machine, peak_memory, share
from mmtr.cli import measuring
from mmtr.cli.sweeping import check_one, write_sweep
from mmtr.config.files import add_options, add_token_reduction, load_config, merge_options, with_reduction
from mmtr.config.options import parse_settings
from mmtr.errors import UserError, command
from mmtr.files import write_text
from mmtr.inference.model import build_model, image_channels, read_weights
from mmtr.reducers.reduces import reduces
from mmtr.reports.speed import notes, table

COMPILED = ' compiled'
PARTS = dict(model='whole model (backbone and head, logits not resized)', backbone='backbone alone')
# Methods of a reducer that do only its own work; `attention` and `ffn` also do the layer's.
REDUCER_METHODS = ('before_layer', 'between', 'after_layer', 'restore', 'give_back')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='file or mmseg::name; CONFIG@key=value[@key=value] overrides its settings',
    )
    parser.add_argument('--shape', nargs=2, type=measuring.positive, required=True, metavar=('H', 'W'), help='pixels')
    parser.add_argument('--checkpoint', help='weights of all models; else random ones, the same for all')
    parser.add_argument('--batch-size', type=measuring.positive, default=1)
    parser.add_argument(
        '--repeats',
        type=measuring.positive,
        default=10,
        help='timed rounds, after FLOPs and memory were counted, which warms up',
    )
    measuring.add_machine(parser)
    parser.add_argument(
        '--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32', help='other than float32: autocast'
    )
    parser.add_argument(
        '--compile', action='store_true', help='each model a second time, through torch.compile; compiling is not timed'
    )
    parser.add_argument(
        '--sdpa', choices=measuring.SDPA_KERNELS, help="kernel of torch's attention; by default torch chooses"
    )
    parser.add_argument('--part', nargs='+', choices=PARTS, default=['model'])
    parser.add_argument(
        '--sweep',
        metavar='F',
        help='instead, measure a layer of one plain ViT by the number of its tokens, and what the methods themselves '
        'take, and write that there: tools predict from it what a reduction gains on this machine',
    )
    add_options(parser)
    add_token_reduction(parser, 'each config is measured as it is and once more with')
    parser.add_argument('--json', metavar='F', help='write all results there, single durations included')
    return parser.parse_args()


def read_config(spec: str, options: dict[str, Any]) -> Config:
    """Read the config of ``FILE_OR_NAME[@key=value...]``; ``options`` are merged in before its overrides.

    Raises:
        UserError: The config is not there or cannot be read, an override does not fit, or it has no model.
    """
    path, *overrides = spec.split('@')
    cfg = load_config(path)
    merge_options(cfg, options)
    merge_options(cfg, parse_settings(overrides))
    if 'backbone' not in cfg.get('model', {}):
        raise UserError(f"Config '{path}' has no model with a backbone: give the config of a segmentor or detector.")
    return cfg


def read_configs(args: argparse.Namespace) -> tuple[list[str], list[Config]]:
    """Read all configs, each also with ``--token-reduction`` if it is given: return (specs, configs)."""
    found = {}
    for i, spec in enumerate(args.configs):
        cfg = found[i, spec] = read_config(spec, args.cfg_options)
        if args.token_reduction is not None:
            reduced = copy.deepcopy(cfg)
            merge_options(reduced, with_reduction(cfg, args.token_reduction))
            words = [value if key == 'type' else f'{key}={value}' for key, value in args.token_reduction.items()]
            found[i, f'{spec}@{",".join(words) or "none"}'] = reduced
    return [spec for _, spec in found], list(found.values())


def check_shape(shape: tuple[int, int], cfg: Config, spec: str) -> None:
    """Raise a ``UserError`` if an image of ``shape`` (H, W) is smaller than a patch of the backbone."""
    patch = cfg.model.backbone.get('patch_size', 1)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    if shape[0] < height or shape[1] < width:
        raise UserError(
            f'--shape {shape[0]} {shape[1]} is smaller than one patch of {height}x{width} pixels '
            f"of '{spec}': give a larger shape."
        )


def share_weights(weights: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Put the tensors of ``weights`` that fit into ``model``; return the names of those that keep its own values."""
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    # With assign, all models share one copy of the weights.
    model.load_state_dict(fitting, strict=False, assign=True)
    return sorted(own.keys() - fitting.keys())


def build_all(
    args: argparse.Namespace, specs: list[str], configs: list[Config]
) -> tuple[list[nn.Module], list[list[str]]]:
    """Build all models with the same weights where names and shapes agree.

    Returns:
        The models; and of each the names of the weights that are its own.

    Raises:
        UserError: The checkpoint cannot be read, or does not cover the first model.
    """
    weights, models, kept = None, [], []
    for spec, cfg in zip(specs, configs):
        print(f'Building {spec}', file=sys.stderr)
        model = build_model(cfg, args.device)
        if args.checkpoint and not models:
            weights = read_weights(args.checkpoint, model, args.device)
        kept.append(share_weights(weights, model) if weights else [])
        if args.checkpoint and not models and kept[0]:
            raise UserError(
                f"Checkpoint '{args.checkpoint}' does not fit '{spec}': {len(kept[0])} tensors "
                f'are missing or of another shape, such as {kept[0][0]}.'
            )
        weights = weights or model.state_dict()
        models.append(model)
    return models, kept


def calibrate(args: argparse.Namespace, model: nn.Module, own_weights: list[str], images: Tensor) -> None:
    """Calibrate a reducer with random weights, so that it computes as much on ``images`` as a trained one."""
    if hasattr(model.backbone, 'token_reducer') and (
        not args.checkpoint or any(name.startswith('backbone.token_reducer.') for name in own_weights)
    ):
        with torch.no_grad():
            model.backbone.token_reducer.calibrate(lambda: model.backbone(images))


def measure(
    args: argparse.Namespace, names: list[str], models: list[nn.Module], kept: list[list[str]]
) -> list[dict[str, Any]]:
    """Measure each part of each model: one result each, as it is written to the JSON file.

    Args:
        kept: Names of the weights of each model that are its own, of ``build_all``.
    """
    channels = sorted({image_channels(model) for model in models})
    if len(channels) > 1:
        raise UserError(
            f'The models take images of {" and ".join(map(str, channels))} channels: compare those of one '
            'kind of images.'
        )
    images = measuring.random_images(args, channels[0])
    for model, own_weights in zip(models, kept):
        calibrate(args, model, own_weights, images)

    def forward(module):
        def call():
            with torch.inference_mode(), measuring.autocast(args):
                module(images)

        return call

    results, calls = {}, {}
    for part in args.part:
        for name, model in zip(names, models):
            print(f'Counting {name}, {part}', file=sys.stderr)
            module = model if part == 'model' else model.backbone
            compiled = args.compile and name.endswith(COMPILED)
            calls[part, name] = forward(torch.compile(module, dynamic=False) if compiled else module)
            flops = count_flops(module, images[:1])
            results[part, name] = dict(
                part=part,
                config=name,
                gflops=flops.total / 1e9,
                uncounted=flops.unsupported,
                parameters=sum(p.numel() for p in module.parameters()),
                peak_memory_bytes=peak_memory(calls[part, name], args.device),
                tokens_per_layer=token_schedule(model.backbone, args.shape),
                reducer_share=None,
            )
    print(f'Timing {len(calls)} in turns', file=sys.stderr)
    bar = ProgressBar(args.repeats, file=sys.stderr)
    # No warm-up: counting has run each model three times.
    timings = interleave(calls, args.repeats, warmup=0, progress=lambda done, of: bar.update())
    print(file=sys.stderr)
    for (part, name), result in results.items():
        timing = timings[part, name]
        median, low, high = (1e3 * t / args.batch_size for t in (timing.median, *timing.quartiles))
        result.update(
            seconds=timing.seconds,
            ms_per_image=median,
            ms_per_image_quartiles=[low, high],
            images_per_second=1e3 / median,
        )
        backbone = models[names.index(name)].backbone
        # In a compiled model the methods of the reducer are not called one by one.
        if reduces(getattr(backbone, 'token_reducer', None)) and not (args.compile and name.endswith(COMPILED)):
            result['reducer_share'] = share(calls[part, name], backbone.token_reducer, REDUCER_METHODS, args.repeats)
    for (part, _), result in results.items():
        first = results[part, names[0]]
        result.update(
            speed_up=first['ms_per_image'] / result['ms_per_image'],
            gflops_ratio=result['gflops'] / first['gflops'],
            memory_ratio=result['peak_memory_bytes'] / first['peak_memory_bytes'],
        )
    return list(results.values())


def names_of(specs: list[str]) -> list[str]:
    """Shorten specs to distinct names for the table; a repeated config is numbered."""
    short = []
    for spec in specs:
        path, *overrides = spec.split('@')
        file = path.rsplit('/', 1)[-1].removesuffix('.py')
        short.append('@'.join([file, *(re.sub(r'^[^=]*\.', '', override) for override in overrides)]))
    names = [name if short.count(name) == 1 else spec for name, spec in zip(short, specs)]
    return [name if names.count(name) == 1 else f'{name} #{names[: i + 1].count(name)}' for i, name in enumerate(names)]


@command
def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    measuring.use_machine(args)
    for option in ('json', 'sweep'):
        if vars(args)[option]:
            measuring.check_file(vars(args)[option], f'--{option}')
    if args.compile:
        measuring.check_compiler()
    measuring.check_dtype(args)
    measuring.only_sdpa(args)
    specs, configs = read_configs(args)
    if args.sweep:
        check_one(args, specs)
    for cfg, spec in zip(configs, specs):
        check_shape(args.shape, cfg, spec)
    names = names_of(specs)
    models, kept = build_all(args, specs, configs)
    if args.sweep:
        return write_sweep(args, models[0])
    if args.compile:
        # Models share code, and torch runs code uncompiled, in silence, beyond this number of compilations. The setting
        # has its name of torch 2.1, which later releases accept too.
        torch._dynamo.config.cache_size_limit = 64
        names = [each for name in names for each in (name, name + COMPILED)]
        models, kept = ([each for each in values for _ in range(2)] for values in (models, kept))
    results = measure(args, names, models, kept)
    for result in results:
        result['own_weights'] = kept[names.index(result['config'])]
    used = dict(machine(args.device), dtype=args.dtype)
    for part in args.part:
        of_part = [r for r in results if r['part'] == part]
        print(f'\n{PARTS[part]}, batch of {args.batch_size}, {args.shape[0]}x{args.shape[1]} pixels')
        print(table(of_part), *notes(of_part), sep='\n')
    print(
        f'\nTimes: median and quartiles of {args.repeats} rounds in turns. Ratios: to {names[0]}.\n'
        'GFLOPs: multiply-adds of one image. Peak memory: of a forward pass, without weights and images.\n'
        f'Weights: {args.checkpoint or "random"}, the same in all models where names and shapes agree.\n'
        'Machine: ' + ', '.join(f'{key} {value}' for key, value in used.items())
    )
    if args.json:
        report = dict(command=shlex.join(sys.argv), configs=specs, machine=used, settings=vars(args), results=results)
        write_text(args.json, json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
