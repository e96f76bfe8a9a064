"""Convert a released checkpoint to OpenMMLab keys, and name the config that it fits."""

import argparse
import inspect
import os
import shlex
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config

from mmtr.converters import SOURCES
from mmtr.converters.vit import Notes
from mmtr.errors import UserError, command
from mmtr.weights.files import SUFFIXES, write_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Defaults of mmseg's classes and ours.
DEFAULTS = {
    'backbone.attn_norm': False,
    'backbone.ffn_norm': True,
    'backbone.in_channels': 3,
    'backbone.mlp_ratio': 4,
    'backbone.norm_cfg.eps': 1e-5,
    'backbone.num_registers': 0,
    'backbone.patch_bias': False,
    'backbone.peft.bottleneck': 72,
    'backbone.peft.compensator': 48,
    'backbone.token_reduction.window': 2,
    'decode_head.channels': 256,
    'decode_head.mlp_ratio': 4,
}


def deviations(settings: dict[str, Any], model: dict) -> dict[str, Any]:
    """Select the settings, values by dotted keys, in which the ``model`` of a config differs."""
    differing = {}
    for key, value in settings.items():
        found = model
        for name in key.split('.'):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            found = DEFAULTS.get(key)
        if isinstance(value, tuple):
            # A single number stands for height and width.
            found = tuple(found) if isinstance(found, (list, tuple)) else (found,) * len(value)
        if found != value:
            differing[key] = value
    return differing


def advice(notes: Notes, out: Path, whole_model: bool) -> list[str]:
    """Write the lines that tell the user how to use the file ``out``.

    Args:
        notes: Notes of the conversion.
        whole_model: Whether ``out`` holds a whole model; False: a backbone.
    """
    lines = []
    configs = sorted(CONFIGS.glob(notes.fits)) if notes.fits else []
    # If several configs match the pattern, any will do: they have the same backbone.
    differing = deviations(notes.settings, Config.fromfile(configs[0]).model) if configs else notes.settings
    options = [f'model.{key}={str(value).replace(" ", "")}' for key, value in differing.items()]
    if not whole_model:
        options.insert(0, f'model.{notes.pretrained}={out}')
    if configs:
        config = f'mmtr::{configs[0].name}'
        tool = f'test {config} {out}' if whole_model else f'train {config}'
        lines.append(f'It fits mmtr::{notes.fits}. To use it:')
        lines.append(f'  python -m mmtr {tool}' + (' --cfg-options ' + shlex.join(options) if options else ''))
    else:
        absent = f' (there is no {notes.fits})' if notes.fits else ''
        lines.append(f'No config of mmtr is for it{absent}; yours needs:')
        lines += [f'  {option}' for option in options]
    return lines + notes.remarks


@command
def main(argv: Optional[list[str]] = None) -> None:
    """Run the command line; print the file that was written and how to use it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--source', required=True, choices=SOURCES, help='where the checkpoint comes from')
    parser.add_argument('input', metavar='IN', help='its file; for segmenter also the folder of the release')
    parser.add_argument('output', metavar='OUT', help=f'the file to write: {" or ".join(SUFFIXES)}')
    parser.add_argument(
        '--num-heads',
        type=int,
        metavar='N',
        help='attention heads of an EVA-02 (eva02, cropr), where they have not 64 channels each',
    )
    args = parser.parse_args(argv)
    out = Path(args.output)
    if out.suffix not in SUFFIXES:
        raise UserError(f"OUT must end in {' or '.join(SUFFIXES)}, and '{out.name}' does not.")
    if os.path.realpath(args.input) == os.path.realpath(out):
        raise UserError(f"OUT is IN ('{out}'), and the original is not overwritten: give another name.")

    source = SOURCES[args.source]
    options = {} if args.num_heads is None else dict(num_heads=args.num_heads)
    if options and 'num_heads' not in inspect.signature(source.convert).parameters:
        raise UserError(f'--num-heads is for eva02 and cropr: {args.source} needs none.')
    state, notes = source.convert(*source.read(args.input), **options)
    write_checkpoint(out, state, notes.meta)
    count = sum(tensor.numel() for tensor in state.values())
    print(f'Wrote {out}: {len(state)} tensors, {count / 1e6:.1f} M parameters.')
    whole = any(key.startswith(('decode_head.', 'panoptic_head.')) for key in state)
    print(*advice(notes, out, whole), sep='\n')


if __name__ == '__main__':
    main()
