"""Test a checkpoint with any mmseg, mmdet or mmtr config, with the stock mmengine runner."""

import inspect
import os.path as osp

from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, Registry

import mmtr  # noqa: F401
from mmtr.cli import launch
from mmtr.config.types import is_type
from mmtr.errors import UserError, command
from mmtr.inference.tta import use_tta
from mmtr.weights.files import read_checkpoint


def accepts(registry: Registry, cfg: dict, argument: str) -> bool:
    """Whether the class that ``cfg`` names has the argument ``argument``."""
    kind = registry.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    return kind is not None and argument in inspect.signature(kind).parameters


def write_predictions(cfg: Config, out: str) -> None:
    """Set a config to write label maps as PNG into the folder ``out``, or detections into the pickle ``out``.

    Raises:
        UserError: No metric writes label maps, and ``out`` is no .pkl file.
    """
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    with METRICS.switch_scope_and_registry(cfg.get('default_scope') or 'mmengine') as registry:
        writer = next((metric for metric in metrics if accepts(registry, metric, 'output_dir')), None)
        if writer is not None:
            writer['output_dir'] = out
            if accepts(registry, writer, 'keep_results'):
                writer['keep_results'] = True
        elif out.endswith(('.pkl', '.pickle')):
            cfg.test_evaluator = [*metrics, dict(type='mmdet.DumpDetResults', out_file_path=out)]
        else:
            raise UserError(f"--out '{out}' must end in .pkl: the metrics of the config write no label maps.")


def paint(cfg: Config, folder: str) -> None:
    """Set a config to write a picture of every prediction into ``folder``.

    Raises:
        UserError: The config has no visualization hook.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UserError(
            '--show-dir needs the hook default_hooks.visualization in the config, e.g. '
            "dict(type='SegVisualizationHook')."
        )
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope') or 'mmengine') as registry:
        if accepts(registry, hook, 'enable'):  # mmpretrain's, which takes any other name too
            hook.update(enable=True, interval=1, out_dir=osp.abspath(folder))
            return
        hook['draw'] = True
        if accepts(registry, hook, 'test_out_dir'):
            hook['test_out_dir'] = osp.abspath(folder)
            return
    hook['interval'] = 1  # by default, mmseg paints every 50th image
    cfg.visualizer = {**cfg.get('visualizer', dict(type='SegLocalVisualizer')), 'save_dir': folder}
    backends = cfg.visualizer.setdefault('vis_backends', [])
    if not any(is_type(backend, 'mmengine.LocalVisBackend') for backend in backends):
        backends.append(dict(type='LocalVisBackend'))


@command
def main() -> None:
    """Run the command line."""
    parser = launch.parser(__doc__)
    parser.add_argument('checkpoint', help='.pth or .safetensors file, or a URL')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and "
        'tta_pipeline, or by default flips, and of segmentors sizes',
    )
    parser.add_argument('--out', help='folder for predictions as PNG label maps (mmdet, mmpretrain: a .pkl file)')
    parser.add_argument('--show-dir', help='folder for painted predictions')
    parser.add_argument(
        '--allow-partial', action='store_true', help='test although the checkpoint does not cover the model'
    )
    args = parser.parse_args()
    cfg = launch.read_config(args)
    outputs = {'--work-dir': cfg.work_dir, '--out': args.out, '--show-dir': args.show_dir}
    for option, path in outputs.items():
        if path:
            in_file = path.endswith(('.pkl', '.pickle'))
            launch.writable(osp.dirname(osp.abspath(path)) if in_file else path, option)
    if '://' not in args.checkpoint:
        read_checkpoint(args.checkpoint, map_location='meta')
    cfg.load_from, cfg.resume = args.checkpoint, False
    # mmengine would build the training data when a hook asks for the iteration.
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        cfg[key] = None
    launch.add_hook(cfg, type='mmtr.CheckpointCoverageHook', allow_partial=args.allow_partial)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.out:
        write_predictions(cfg, args.out)
    if args.show_dir:
        paint(cfg, args.show_dir)
    if args.tta:
        use_tta(cfg)
    folders = [path for path in (args.out, args.show_dir) if path]
    with launch.runner(cfg, ('test_dataloader',), folders) as runner:
        runner.test()


if __name__ == '__main__':
    main()
