"""Train a model of any mmseg, mmdet or mmtr config, with the stock mmengine runner."""

import errno

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader

import mmtr  # noqa: F401
from mmtr.checks.run_state import check_state
from mmtr.cli import launch
from mmtr.config.types import is_type
from mmtr.engine.hooks.checkpoint import how_to_go_on, last_checkpoint, write_failure
from mmtr.errors import UserError, command, in_chain


def use_amp(cfg: Config, wanted: bool) -> None:
    """Set a config to mixed precision if ``--amp`` (``wanted``) or its optim_wrapper asks for it, also on a CPU.

    Raises:
        UserError: ``--amp`` is given, but the config has an optim_wrapper of another kind.
    """
    wrapper = cfg.setdefault('optim_wrapper', {})
    kind = wrapper.get('type', 'OptimWrapper')
    amp = is_type(kind, 'mmengine.AmpOptimWrapper')
    if wanted and not (amp or is_type(kind, 'mmengine.OptimWrapper')):
        raise UserError(f"--amp works with the optim_wrapper 'OptimWrapper', but the config has '{kind}'.")
    if not wanted and not amp:
        return
    if get_device() == 'cpu':
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            wrapper.pop(key, None)
        wrapper.type = 'mmtr.CPUAmpOptimWrapper'
    else:
        wrapper.type = 'AmpOptimWrapper'


def resume(cfg: Config, path: str) -> None:
    """Set a config to resume from the checkpoint ``path``; 'auto' is the last one in the work folder, if any.

    Raises:
        UserError: The checkpoint cannot be read or holds no training state.
    """
    if path == 'auto':
        path = last_checkpoint(cfg.work_dir)
        if path is None:
            print(f"There is no checkpoint in '{cfg.work_dir}' to resume from, so training starts anew.")
            cfg.resume = False
            return
    checkpoint = CheckpointLoader.load_checkpoint(path, 'meta', logger='silent')
    check_state(checkpoint, path)
    cfg.load_from, cfg.resume = path, True
    # mmengine restores the seed after the samplers have been built with another one.
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': checkpoint['meta'].get('seed')}


@command
def main() -> None:
    """Run the command line."""
    parser = launch.parser(__doc__)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from the last checkpoint in the work folder, or from the one given',
    )
    parser.add_argument(
        '--allow-partial',
        action='store_true',
        help='train although what it starts from leaves layers of the backbone random',
    )
    args = parser.parse_args()
    cfg = launch.read_config(args)
    launch.writable(cfg.work_dir, '--work-dir')
    use_amp(cfg, args.amp)
    launch.add_hook(cfg, type='mmtr.IterationSeedHook')
    launch.add_hook(cfg, type='mmtr.CheckpointCoverageHook', allow_partial=args.allow_partial)
    launch.add_hook(cfg, type='mmtr.ResumeCheckHook')
    if args.resume or cfg.get('resume'):
        resume(cfg, args.resume or cfg.get('load_from') or 'auto')
    with launch.runner(cfg, ('train_dataloader', 'val_dataloader')) as runner:
        try:
            runner.train()
        except (KeyboardInterrupt, OSError, SyntaxError) as error:
            # mmengine turns a Ctrl-C while it formats the config for a checkpoint into a SyntaxError.
            if in_chain(error, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    f'Interrupted at iteration {runner.iter}; {how_to_go_on(cfg.work_dir)}.'
                ) from None
            if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
                raise write_failure(error, cfg.work_dir) from error
            raise


if __name__ == '__main__':
    main()
