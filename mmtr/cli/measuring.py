"""What the tools share that measure models: their command line, and from it to a trained model."""

import argparse
import logging
import os

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from mmtr.apis import apply_token_reduction
from mmtr.checks.data import check_data
from mmtr.config.files import add_options, read_config
from mmtr.errors import UserError
from mmtr.inference.model import build_model, load_weights


def positive(text):
    """A whole number above 0, from the command line."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = 'whole number above 0'  # argparse names the type in its error


def add_machine(parser):
    """Give an ``argparse`` parser the options of where and how a model runs."""
    parser.add_argument('--threads', type=positive, help='CPU threads of torch')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')


def use_machine(args):
    """Do as the options of ``add_machine`` say; raises ``UserError`` if there is no such device."""
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        devices = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        raise UserError(f'--device {args.device} cannot be used: this machine has {", ".join(devices)}.') from error
    if args.threads:
        torch.set_num_threads(args.threads)


def parser(description):
    """``ArgumentParser`` with config, checkpoint, and how they are run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config of the plain model, with its test data')
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    add_machine(parser)
    add_options(parser)
    return parser


def load(args, loaders=('test_dataloader',)):
    """Config and trained model of what ``parser`` read: not reduced, in eval mode, on its device.

    Raises:
        UserError: One of them, or the data of ``loaders``, is not there or does not fit.
    """
    use_machine(args)
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    cfg = read_config(args)
    needed = ('model', *loaders, 'test_evaluator') if loaders else ('model',)
    absent = [key for key in needed if not cfg.get(key)]
    if absent:
        raise UserError(
            f"Config '{args.config}' has no {' and no '.join(absent)}: give one that tools/test.py can test."
        )
    check_data(cfg, loaders)
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    model = build_model(cfg)
    load_weights(model, args.checkpoint)
    return cfg, apply_token_reduction(model, None).to(args.device)


def check_file(path, option):
    """Raise a ``UserError`` unless files can be written beside ``path``, which is no folder."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise UserError(f'{option} {path} cannot be written: give a file in a folder that exists.')
