"""Convert a released checkpoint to OpenMMLab keys, and name the config that it fits."""

import argparse
import inspect
import os
import shlex
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config

from mmtr.config.model import model_of
from mmtr.converters import SOURCES
from mmtr.converters.layouts import sources_of
from mmtr.converters.vit import Notes
from mmtr.errors import UserError, command
from mmtr.optional import import_mmpretrain
from mmtr.weights.files import SUFFIXES, write_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
# Sources whose files do not hold the number of attention heads.
ASKED = [name for name, source in SOURCES.items() if 'num_heads' in inspect.signature(source.convert).parameters]
# Sources of which some files are complete only with another.
BASED = [name for name, source in SOURCES.items() if 'base' in inspect.signature(source.read).parameters]
# Defaults of mmseg's classes and ours.
DEFAULTS = {
    'backbone.attn_norm': False,
    'backbone.ffn': 'mlp',
    'backbone.ffn_norm': True,
    'backbone.in_channels': 3,
    'backbone.mlp_ratio': 4,
    'backbone.norm_cfg.eps': 1e-5,
    'backbone.num_registers': 0,
    'backbone.pretrain_img_size': (224, 224),
    'backbone.patch_bias': False,
    'backbone.peft.bottleneck': 72,
    'backbone.peft.compensator': 48,
    'backbone.token_reduction.window': 2,
    'decode_head.channels': 256,
    'decode_head.mlp_ratio': 4,
}
# mmpretrain has two names for each arch.
LONG = {'b': 'base', 'l': 'large', 'h': 'huge', 'deit-t': 'deit-tiny', 'deit-s': 'deit-small'}


def deviations(settings: dict[str, Any], model: dict) -> dict[str, Any]:
    """Select the settings, values by dotted keys, in which the ``model`` of a config differs."""
    differing = {}
    for key, value in settings.items():
        found = model
        for name in key.split('.'):
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            found = DEFAULTS.get(key)
        if key == 'backbone.arch' and isinstance(found, str):
            found = LONG.get(found, found)
        if isinstance(value, tuple):
            # A single number stands for height and width.
            found = tuple(found) if isinstance(found, (list, tuple)) else (found,) * len(value)
        if found != value:
            differing[key] = value
    return differing


def fragment(settings: dict[str, Any]) -> list[str]:
    """Write a whole model, settings by dotted keys, as the lines of a config."""

    def text(value):
        if not isinstance(value, dict):
            return repr(value)
        return f'dict({", ".join(f"{key}={text(each)}" for key, each in value.items())})'

    model = Config()
    model.merge_from_dict({key: value for key, value in settings.items() if DEFAULTS.get(key) != value})
    return ['model = dict(', *(f'    {key}={text(value)},' for key, value in model.to_dict().items()), ')']


def advice(notes: Notes, out: Path, whole_model: bool) -> list[str]:
    """Write the lines that tell the user how to use the file ``out``.

    Args:
        notes: Notes of the conversion.
        whole_model: Whether ``out`` holds a whole model; False: a backbone.
    """
    configs = sorted(CONFIGS.glob(notes.fits)) if notes.fits else []
    classifier = 'type' in notes.settings
    if classifier and configs:
        try:
            import_mmpretrain(f'It fits mmtr::{notes.fits}, which')
        except UserError as error:
            return [str(error), 'Its model:', *_model(notes, out, whole_model), *notes.remarks]
    if not configs:
        absent = f' (there is no {notes.fits})' if notes.fits else ''
        needs = _model(notes, out, whole_model) if classifier else _options(notes, notes.settings, out, whole_model)
        return [f'No config of mmtr is for it{absent}; yours needs:', *(f'  {line}' for line in needs), *notes.remarks]
    # If several configs match the pattern, any will do: they have the same backbone.
    cfg = Config.fromfile(configs[0])
    options = _options(notes, deviations(notes.settings, model_of(cfg)), out, whole_model)
    config = f'mmtr::{configs[0].name}'
    tool = f'test {config} {out}' if whole_model else f'train {config}'
    return [
        f'It fits mmtr::{notes.fits}. To use it:',
        f'  python -m mmtr {tool}' + (' --cfg-options ' + shlex.join(options) if options else ''),
        *notes.remarks,
    ]


def _options(notes, settings, out, whole_model):
    options = [f'model.{key}={str(value).replace(" ", "")}' for key, value in settings.items()]
    return options if whole_model else [f'model.{notes.pretrained}={out}', *options]


def _model(notes, out, whole_model):
    start = dict(type='Pretrained', checkpoint=str(out), prefix='backbone.')
    return fragment(notes.settings if whole_model else {**notes.settings, 'backbone.init_cfg': start})


def check_layout(state: dict[str, Any], source: str, path: str) -> None:
    """Raise a ``UserError`` if the keys of ``state``, the file of ``path``, are those of another source."""
    sources = sources_of(state)
    if sources is None or source in sources:
        return
    if not sources:
        raise UserError(f"'{path}' has the keys of OpenMMLab already: there is nothing to convert.")
    raise UserError(
        f"'{path}' is not {SOURCES[source].KIND}, its keys are those of another source: give --source "
        f'{" or ".join(sources)}.'
    )


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
        help=f'attention heads ({", ".join(ASKED)}), where the file is of no size that was released',
    )
    parser.add_argument(
        '--base', metavar='FILE', help=f'the file that IN ({", ".join(BASED)}) holds the difference from'
    )
    args = parser.parse_args(argv)
    out = Path(args.output)
    if out.suffix not in SUFFIXES:
        raise UserError(f"OUT must end in {' or '.join(SUFFIXES)}, and '{out.name}' does not.")
    if os.path.realpath(args.input) == os.path.realpath(out):
        raise UserError(f"OUT is IN ('{out}'), and the original is not overwritten: give another name.")

    source = SOURCES[args.source]
    options = {} if args.num_heads is None else dict(num_heads=args.num_heads)
    if options and args.source not in ASKED:
        raise UserError(f'--num-heads is for {", ".join(ASKED)}: {args.source} needs none.')
    if args.base is not None and args.source not in BASED:
        raise UserError(f'--base is for {", ".join(BASED)}: {args.source} needs none.')
    loaded = source.read(args.input, *([] if args.base is None else [args.base]))
    check_layout(loaded[0], args.source, args.input)
    state, notes = source.convert(*loaded, **options)
    write_checkpoint(out, state, notes.meta)
    count = sum(tensor.numel() for tensor in state.values())
    print(f'Wrote {out}: {len(state)} tensors, {count / 1e6:.1f} M parameters.')
    whole = any(key.startswith(('decode_head.', 'panoptic_head.', 'head.')) for key in state)
    print(*advice(notes, out, whole), sep='\n')


if __name__ == '__main__':
    main()
