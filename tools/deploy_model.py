"""Write a trained model without the parts that only training needs, and the config that goes with it.

Example: tools/deploy_model.py configs/segmenter_vit-t_cropr_camvid.py work_dirs/cropr/iter_2000.pth deployed.pth
writes deployed.pth and deployed.py, which need no other file.
"""

import argparse
import os
from pathlib import Path
from typing import Optional

import torch
from mmengine import Config
from torch import nn

from mmtr.config.files import add_options, read_config
from mmtr.config.types import is_type
from mmtr.errors import UserError, command
from mmtr.inference.model import build_model, has_peft, image_channels, load_weights, without_pretrained
from mmtr.ops.nested import tensors
from mmtr.weights.files import SUFFIXES, read_checkpoint, write_checkpoint

# Largest allowed change of a feature when weights are merged, as a share of the largest feature.
TOLERANCE = 1e-4


def parse_args(argv: Optional[list[str]]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of training')
    parser.add_argument('checkpoint', help='.pth or .safetensors file of training')
    parser.add_argument(
        'output',
        metavar='OUT',
        help=f'the file to write: {" or ".join(SUFFIXES)}; the config goes beside it, with the suffix .py',
    )
    add_options(parser)
    return parser.parse_args(argv)


def check_deployable(cfg: Config, path: str) -> None:
    """Raise a ``UserError`` if the model of ``cfg``, read from ``path``, has no deployed form, or has it already."""
    reduction = cfg.get('model', {}).get('backbone', {}).get('token_reduction') or {}
    if reduction.get('deploy'):
        raise UserError(f"Config '{path}' has token_reduction.deploy=True already: give the config of training.")
    if not (has_cropr(cfg) or has_peft(cfg) or distills(cfg)):
        raise UserError(
            f"Config '{path}' has no model.backbone.token_reduction of type 'Cropr', no model.backbone.peft"
            ' and no model.distillation, so there is nothing to take out or to put together.'
        )


def has_cropr(cfg: Config) -> bool:
    """Whether the backbone in a config is reduced by ``Cropr``, which has auxiliary heads."""
    reduction = cfg.get('model', {}).get('backbone', {}).get('token_reduction') or {}
    return is_type(reduction, 'mmtr.Cropr')


def distills(cfg: Config) -> bool:
    """Whether the model in a config has a teacher."""
    return cfg.get('model', {}).get('distillation') is not None


def deployed(cfg: Config, model: nn.Module) -> tuple[Config, nn.Module]:
    """Return the config of the deployed form, and its model with the weights of ``model``."""
    weights, backbone, changes = dict(model.state_dict()), {}, {}
    if has_peft(cfg):
        merged = model.backbone.peft.merged_state_dict(model.backbone)
        if merged is not None:
            backbone['peft'] = None
            weights = _with(weights, 'backbone.', merged)
    if has_cropr(cfg):
        backbone['token_reduction'] = dict(deploy=True)
        weights = _with(weights, 'backbone.token_reducer.', model.backbone.token_reducer.deployed_state_dict())
    if backbone:
        changes['backbone'] = backbone
    if distills(cfg):
        changes['distillation'] = None
        weights = _with(weights, 'distillation.', {})
    cfg = Config(cfg.to_dict())
    cfg.merge_from_dict(dict(model=changes))
    # The pretrained files of training need not be there where the config is used.
    cfg.model, cfg.load_from, cfg.resume = without_pretrained(cfg.model), None, False
    small = build_model(cfg)
    small.load_state_dict(weights)
    return cfg, small


def _with(weights, prefix, part):
    return {
        **{name: value for name, value in weights.items() if not name.startswith(prefix)},
        **{prefix + name: value for name, value in part.items()},
    }


@torch.no_grad()
def difference(first: nn.Module, second: nn.Module) -> float:
    """Compare the features of two backbones on random images of the training size and a larger one.

    Returns:
        The largest absolute difference, as a share of the largest feature.
    """
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for height, width in (first.img_size, [size + 2 * first.patch_size for size in first.img_size]):
        images = torch.randn(2, image_channels(first), height, width, generator=generator)
        found, others = tensors(first(images)), tensors(second(images))
        assert len(found) == len(others)
        largest = max([largest, *(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(found, others))])
    return largest


def size_in_words(model: nn.Module) -> str:
    """Format the number of parameters of a model."""
    return f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters'


@command
def main(argv: Optional[list[str]] = None) -> None:
    """Run the command line; print the files, their sizes and the difference of the features."""
    args = parse_args(argv)
    out = Path(args.output)
    if out.suffix not in SUFFIXES:
        raise UserError(f"OUT must end in {' or '.join(SUFFIXES)}, and '{out.name}' does not.")
    config = out.with_suffix('.py')
    for given, written in ((args.checkpoint, out), (args.config, config)):
        if os.path.realpath(given) == os.path.realpath(written):
            raise UserError(f"'{written}' would be overwritten by what is written for OUT: give another name.")
    cfg = read_config(args)
    check_deployable(cfg, args.config)
    model = build_model(cfg)
    load_weights(model, args.checkpoint)
    small_cfg, small = deployed(cfg, model)
    largest = difference(model.backbone, small.backbone)
    if not largest <= TOLERANCE:
        raise UserError(f'The features before and after differ by {largest:.2g} of the largest: nothing was written.')
    meta = read_checkpoint(args.checkpoint, 'meta').get('meta', {})
    write_checkpoint(out, small.state_dict(), {'dataset_meta': meta['dataset_meta']} if 'dataset_meta' in meta else {})
    config.write_text(small_cfg.pretty_text)
    sizes = [os.path.getsize(path) / 1e6 for path in (args.checkpoint, out)]
    print(
        f'Before: {args.checkpoint}, {sizes[0]:.1f} MB, {size_in_words(model)}\n'
        f'After:  {out}, {sizes[1]:.1f} MB, {size_in_words(small)}\n'
        f'Largest difference of the features of random images, as a share: {largest:.2g}\n'
        f'To use it: python -m mmtr test {config} {out}'
    )


if __name__ == '__main__':
    main()
