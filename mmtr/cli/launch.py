"""Functions that ``tools/train.py`` and ``tools/test.py`` share: from the command line to a running ``Runner``."""

import argparse
import os
import os.path as osp
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner

import mmtr.registry  # noqa: F401  makes type='mmtr.Name' known to any config
from mmtr.analysis.gain import warn_of_small_gains
from mmtr.checks.building import in_words_of
from mmtr.checks.config import check_config
from mmtr.checks.data import check_data
from mmtr.checks.heads import check_heads
from mmtr.checks.optimizer import say_unused_keys
from mmtr.config import files as configs
from mmtr.config.files import add_options, add_token_reduction
from mmtr.config.types import is_type
from mmtr.engine.hooks.coverage import unwrap
from mmtr.errors import UserError, in_words
from mmtr.inference.model import has_peft
from mmtr.operators import check_operators

# Environment variables in which each launcher gives the rank of a process.
LAUNCHER_ENV = dict(
    pytorch=dict(RANK='RANK', LOCAL_RANK='LOCAL_RANK', WORLD_SIZE='WORLD_SIZE'),
    slurm=dict(RANK='SLURM_PROCID', LOCAL_RANK='SLURM_LOCALID', WORLD_SIZE='SLURM_NTASKS'),
    mpi=dict(RANK='OMPI_COMM_WORLD_RANK', LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE'),
)


def parser(description: str) -> argparse.ArgumentParser:
    """Build a parser with the options that training and testing share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help="config file, or a packaged one like 'mmtr::...' or 'mmseg::segmenter/...'")
    parser.add_argument('--work-dir', help='folder for logs and results; default work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bfloat16 on a CPU)')
    add_options(parser)
    add_token_reduction(parser)
    parser.add_argument('--launcher', choices=('none', *LAUNCHER_ENV), default='none', help='job launcher')
    # mim starts processes with torch.distributed.launch, which passes this option beside LOCAL_RANK.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
    return parser


def read_config(args: argparse.Namespace) -> Config:
    """Read the config of a run, merge the command line into it, and add the hooks that our tools use by default.

    Raises:
        UserError: The config cannot be read, or an option does not fit it.
    """
    cfg = configs.read_config(args)
    cfg.launcher = args.launcher
    name = osp.splitext(osp.basename(args.config.split('::')[-1]))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    hook = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook'))
    if hook and is_type(hook, 'mmengine.CheckpointHook'):
        hook['type'] = 'mmtr.CheckpointHook'
    add_hook(cfg, type='mmtr.LabelCheckHook')
    if has_peft(cfg):
        if not any(is_type(hook, 'mmtr.PEFTCheckpointHook') for hook in cfg.custom_hooks):
            add_hook(cfg, type='mmtr.PEFTCheckpointHook')
        if cfg.get('optim_wrapper'):
            cfg.optim_wrapper.setdefault('constructor', 'mmtr.TrainableConstructor')
    return cfg


def add_hook(cfg: Config, **hook: Any) -> None:
    """Append a custom hook, given by its type and settings, to a config."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), hook]


def writable(path: str, option: str) -> None:
    """Check, without writing, that ``path`` is, or can become, a folder in which this user may write.

    Raises:
        UserError: It cannot; names ``option``, which gave the path.
    """
    parent = osp.abspath(path)
    while not osp.lexists(parent):
        parent = osp.dirname(parent)
    if not osp.isdir(parent):
        raise UserError(f"{option} '{path}' cannot be a folder: '{parent}' is a file.")
    if not os.access(parent, os.W_OK | os.X_OK):  # novm
        raise UserError(f"{option} '{path}' is not writable: this user may not write in '{parent}'.")


def start_processes(cfg: Config) -> None:
    """Join the process group of ``cfg.launcher``; without a GPU with gloo, which mmengine does not support.

    Raises:
        UserError: The launcher did not start this process.
    """
    if cfg.launcher == 'none':
        return
    names = LAUNCHER_ENV[cfg.launcher]
    absent = [name for name in names.values() if name not in os.environ]
    if absent:
        raise UserError(
            f'--launcher {cfg.launcher}, but {absent[0]} is not set: start the processes with '
            'tools/dist_*.sh, tools/slurm_*.sh or mpirun.'
        )
    # mmengine reads LOCAL_RANK for every launcher but sets it for slurm alone.
    os.environ.update({key: os.environ[name] for key, name in names.items()})
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        show = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(show, text=True).split()[0]
    os.environ.setdefault('MASTER_ADDR', 'localhost')
    os.environ.setdefault('MASTER_PORT', '29500')
    torch.distributed.init_process_group('gloo')
    # On a CPU a data-parallel model has no device number; mmengine would pass one.
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
        **{**(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None},
    )


class RecordingRunner(Runner):
    """mmengine's ``Runner`` that overwrites neither the config of a training in the work folder nor the user's file.

    The stock runner writes the config of every run to the work folder, under the name of its file. This one writes
    the config of a test, and of a run whose config file lies in the work folder, to the log folder of the run.
    """

    @master_only
    def dump_config(self) -> None:
        """Write the config of the run; see the class."""
        if self.cfg.filename and _record(self.cfg) is None:
            self.cfg.dump(osp.join(self.log_dir, osp.basename(self.cfg.filename)))
        else:
            super().dump_config()

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimizer's wrapper as mmengine, and say which of its settings reach no parameter."""
        say_unused_keys(optim_wrapper, self.model)
        return super().build_optim_wrapper(optim_wrapper)

    def load_or_resume(self) -> None:
        """Warn of a reduction that gains nothing here, now that hooks have put it into the model; then load weights."""
        warn_of_small_gains(self.model)
        super().load_or_resume()


def _record(cfg):
    """Path in the work folder for the config of a training; None for a test, or if the config file is that file."""
    if not (cfg.filename and cfg.get('train_cfg')):
        return None
    path = osp.join(cfg.work_dir, osp.basename(cfg.filename))
    return None if osp.realpath(path) == osp.realpath(cfg.filename) else path


@contextmanager
def runner(cfg: Config, loaders: Sequence[str], folders: Sequence[str] = ()) -> Iterator[Runner]:
    """Check a config and its data, then yield its ``Runner`` as a context.

    If a ``UserError`` stops the run before its first training iteration, the folders that it created are removed.

    Args:
        cfg: The config.
        loaders: Names of the data loaders that the run uses.
        folders: Output folders besides the work folder.

    Raises:
        UserError: The model needs operators that mmcv-lite lacks; see also
            :func:`mmtr.checks.config.check_config`, :func:`mmtr.checks.building.in_words_of`,
            :func:`mmtr.checks.data.check_data` and :func:`start_processes`.
    """
    check_config(cfg, loaders)
    check_data(cfg, loaders)
    # The tools load only tensors and plain values, whichever of mmengine's loaders reads a checkpoint.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    start_processes(cfg)
    built = None
    clean = _cleaner(cfg, [cfg.work_dir, *folders])
    _wait_for_a_name(cfg.work_dir)
    try:
        with in_words_of(cfg):
            built = RecordingRunner.from_cfg(cfg)
            check_heads(unwrap(check_operators(built.model)))
            yield built
    except Exception as error:
        # built.iter would build the training data first.
        trained = built is not None and getattr(built._train_loop, 'iter', 0) > 0
        if in_words(error) and not trained and is_main_process():
            clean()
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _wait_for_a_name(work_dir):
    """Wait for the next second if another run began in this one: mmengine names log folders by the second."""
    while osp.exists(osp.join(work_dir, time.strftime('%Y%m%d_%H%M%S'))):
        time.sleep(0.05)


def _cleaner(cfg, folders):
    """Build a function that removes the files of this run, and none that was there before."""
    dumped = _record(cfg)
    fresh = [folder for folder in map(osp.abspath, folders) if not osp.exists(folder)]
    earlier = Path(dumped).read_bytes() if dumped and osp.isfile(dumped) else None
    stops = {folder: _existing_parent(folder) for folder in fresh}
    before = MMLogger.get_current_instance()

    def clean():
        # Another run may share the work folder: only the log folder of this run is removed.
        logger = MMLogger.get_current_instance()
        for handler in tuple(logger.handlers) if logger is not before else ():
            if hasattr(handler, 'baseFilename'):
                handler.close()
                logger.removeHandler(handler)  # mmengine would write into the closed file
                shutil.rmtree(osp.dirname(handler.baseFilename), ignore_errors=True)
        if earlier is not None:
            Path(dumped).write_bytes(earlier)
        elif dumped and osp.exists(dumped):
            os.remove(dumped)
        for folder, stop in stops.items():
            shutil.rmtree(osp.join(folder, 'vis_data'), ignore_errors=True)
            while folder != stop and osp.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
                folder = osp.dirname(folder)

    return clean


def _existing_parent(path):
    while not osp.exists(path):
        path = osp.dirname(path)
    return path
