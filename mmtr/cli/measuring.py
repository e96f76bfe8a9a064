"""Functions that the tools for measuring share: from the command line to a trained model."""

import argparse
import logging
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmtr.apis import apply_token_reduction
from mmtr.checks.data import check_data
from mmtr.config.files import add_options, read_config
from mmtr.errors import UserError
from mmtr.inference.model import build_model, load_weights

#: Kernels of ``torch.nn.functional.scaled_dot_product_attention``.
SDPA_KERNELS = ('flash', 'mem_efficient', 'cudnn', 'math')


def positive(text: str) -> int:
    """Parse a whole number above 0; raises ``ValueError``, as ``argparse`` expects."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = 'whole number above 0'  # argparse names the type in its error


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--threads`` and ``--device`` to a parser."""
    parser.add_argument('--threads', type=positive, help='CPU threads of torch')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')


def use_machine(args: argparse.Namespace) -> None:
    """Apply the options of ``add_machine``; raises ``UserError`` if there is no such device."""
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        devices = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        raise UserError(f'--device {args.device} cannot be used: this machine has {", ".join(devices)}.') from error
    if args.threads:
        torch.set_num_threads(args.threads)


def autocast(args: argparse.Namespace) -> AbstractContextManager:
    """Context in which models compute in ``--dtype``."""
    if args.dtype == 'float32':  # torch 2.1 has no autocast to float32, not even a disabled one
        return nullcontext()
    return torch.autocast(torch.device(args.device).type, getattr(torch, args.dtype))


def check_dtype(args: argparse.Namespace) -> None:
    """Raise a ``UserError`` if ``--device`` cannot compute in ``--dtype``."""
    try:
        with autocast(args):
            pass
    except RuntimeError as error:  # torch 2.1 has no float16 on a CPU
        raise UserError(f'--dtype {args.dtype}, --device {args.device}: {error}.') from error


def check_compiler() -> None:
    """Raise a ``UserError`` if torch cannot compile here."""
    if not any(map(shutil.which, (os.environ.get('CXX', 'g++'), 'clang++'))):
        raise UserError('--compile needs a C++ compiler, and there is neither g++ nor clang++ here: install one.')
    if not torch._dynamo.is_dynamo_supported():
        raise UserError(f'--compile: torch {torch.__version__} compiles nothing in Python {platform.python_version()}.')


def random_images(args: argparse.Namespace, channels: int) -> Tensor:
    """Draw the images of a measurement, always the same: ``--batch-size`` of ``--shape``."""
    shape = (args.batch_size, channels, *args.shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(args.device)


def only_sdpa(args: argparse.Namespace) -> None:
    """Let torch's fused attention use the kernel ``args.sdpa`` alone in this process; None leaves torch as it is.

    Raises:
        UserError: The kernel does not compute in ``args.dtype`` on ``args.device``, or this torch has none.
    """
    if args.sdpa is None:
        return
    for kernel in SDPA_KERNELS:  # torch 2.1 has no switch for cudnn
        getattr(torch.backends.cuda, f'enable_{kernel}_sdp', bool)(kernel == args.sdpa)
    q = torch.zeros(1, 1, 64, 64, device=args.device, dtype=getattr(torch, args.dtype))
    try:
        F.scaled_dot_product_attention(q, q, q)
    except RuntimeError as error:
        raise UserError(
            f'--sdpa {args.sdpa} cannot be used with --dtype {args.dtype}, --device {args.device}: torch '
            f'{torch.__version__} has no such kernel for them; choose another one or leave the option out.'
        ) from error


def parser(description: str) -> argparse.ArgumentParser:
    """Build a parser with config, checkpoint, ``--cfg-options`` and the options of ``add_machine``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config of the plain model, with its test data')
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    add_machine(parser)
    add_options(parser)
    return parser


def load(args: argparse.Namespace, loaders: Sequence[str] = ('test_dataloader',)) -> tuple[Config, nn.Module]:
    """Load the config and the trained model that ``args`` name: without reduction, in eval mode, on ``args.device``.

    Args:
        args: Of ``parser``.
        loaders: Names of the data loaders whose data are checked.

    Raises:
        UserError: Config, checkpoint or data are not there or do not fit each other.
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


def check_file(path: str, option: str) -> None:
    """Raise a ``UserError`` if ``path``, given by ``option``, is a folder or its folder is not writable."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise UserError(f'{option} {path} cannot be written: give a file in a folder that exists.')
