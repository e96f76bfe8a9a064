"""Check a config before anything is built, for faults that stock code finds hours later or never."""

import difflib
import inspect
import logging
from collections.abc import Iterable, Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmtr.checks.heads import check_head_keys
from mmtr.checks.model_config import check_head, check_sizes, check_test_cfg, inner_model, segmentation_heads, type_of
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.optional import import_mmpretrain
from mmtr.settings import closest

# Keys of a config that a run needs together, or not at all.
TOGETHER = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)
# Keys of a loader that mmengine reads; the others are arguments of torch's DataLoader.
LOADER_KEYS = (
    'dataset',
    'sampler',
    'batch_sampler',
    'num_batch_per_epoch',
    'worker_init_fn',
    'collate_fn',
    'disable_subprocess_warning',
)
# Transforms whose output is no input of a model, so that a pipeline cannot end with them.
PACK_NOTHING = (
    'LoadImageFromFile',
    'LoadAnnotations',
    'Resize',
    'RandomResize',
    'RandomCrop',
    'RandomFlip',
    'Pad',
    'Normalize',
    'PhotoMetricDistortion',
    'DefaultFormatBundle',
    'Collect',
)
OLD_LOADER_KEYS = dict(samples_per_gpu='batch_size', workers_per_gpu='num_workers')
# Keys of configs of mmsegmentation 0.x and mmdetection 2.x.
OLD_KEYS = ('data', 'runner', 'lr_config', 'optimizer_config', 'checkpoint_config', 'log_config', 'evaluation')
IOU_METRICS = dict(mIoU=('mIoU', 'mAcc'), mDice=('mDice', 'mAcc'), mFscore=('mFscore', 'mPrecision', 'mRecall'))
COCO_METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def check_config(cfg: Config, loaders: Sequence[str]) -> None:
    """Check the settings of a run; ``check_data`` checks the data sets.

    Args:
        cfg: The config.
        loaders: Names of the data loaders that the run uses, such as ``('test_dataloader',)``.

    Raises:
        UserError: A setting cannot work, or would have no effect.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        import_mmpretrain("default_scope='mmpretrain'")
    _check_names(cfg, loaders)
    if loaders and cfg.get(loaders[0]) is None:
        needed = next(', '.join(keys) for keys in TOGETHER if loaders[0] in keys)
        raise UserError(f'The config has no {loaders[0]}: this run needs {needed}.')
    for keys in TOGETHER:
        _check_together(cfg, keys)
    for name in loaders:
        if isinstance(cfg.get(name), dict):
            _check_loader(name, cfg[name])
    if 'train_dataloader' in loaders:
        _check_loop(cfg)
        _check_scores(cfg)
    for name in set(loaders) - {'train_dataloader'}:
        _check_annotations(cfg, name)
    model = inner_model(model_of(cfg))
    check_head_keys(model)
    for key, head in segmentation_heads(model):
        check_head(key, head, model)
    if model.get('decode_head'):
        check_test_cfg(model)
    if 'train_dataloader' in loaders and type_of(model.get('data_preprocessor')) == 'SegDataPreProcessor':
        check_sizes(model['data_preprocessor'])


def nearest(name: str, known: Iterable[str]) -> str:
    """End a sentence about an unknown ``name``: with the known name most like it, else with a full stop."""
    found = closest(name, known)
    return f'; did you mean {found!r}?' if found else '.'


def _check_names(cfg, loaders):
    old = [key for key in OLD_KEYS if key in cfg]
    if len(old) > 1 and not any(cfg.get(loader) for loader in loaders):
        raise UserError(
            f'The config is one of mmsegmentation 0.x or mmdetection 2.x, it has {" and ".join(old)}: '
            'start from a config of mmsegmentation 1.x or mmdetection 3.x, which has train_dataloader, '
            'optim_wrapper, param_scheduler and train_cfg.'
        )
    if not isinstance(cfg.get('model'), dict):
        raise UserError(
            f'The config has no model, model={cfg.get("model")!r}: inherit one with _base_, or write '
            "model=dict(type='EncoderDecoder', ...)."
        )
    known = inspect.signature(Runner).parameters
    for key, value in cfg.items():
        like = difflib.get_close_matches(key, known, 1, 0.9)
        if like and key not in known and isinstance(value, (dict, list)):
            # A warning only: a config of mmsegmentation has such a slip.
            print_log(
                f'The config has {key!r}, which nothing reads; did you mean {like[0]!r}?', 'current', logging.WARNING
            )


def _check_together(cfg, keys):
    absent = [key for key in keys if cfg.get(key) is None]
    if absent and len(absent) < len(keys):
        there = [key for key in keys if key not in absent]
        raise UserError(
            f'The config has {" and ".join(there)} but no {" and no ".join(absent)}: a run needs '
            f'{", ".join(keys)} together, or each of them None.'
        )


def _check_loader(name, loader):
    known = {*inspect.signature(DataLoader).parameters, *LOADER_KEYS}
    for key in loader:
        if key not in known:
            now = OLD_LOADER_KEYS.get(key)
            hint = f'; it is called {now!r}.' if now else nearest(key, known)
            raise UserError(f'{name} has no setting {key!r}{hint}')
    if 'dataset' not in loader:
        raise UserError(f'{name} has no dataset: write dataset=dict(type=..., ...).')
    if loader.get('shuffle') is not None:
        raise UserError(
            f'{name}.shuffle={loader["shuffle"]} does not go with a sampler: write '
            f"sampler=dict(type='DefaultSampler', shuffle={loader['shuffle']})."
        )
    if 'sampler' not in loader and 'batch_sampler' not in loader:
        raise UserError(
            f"{name} has no sampler: write sampler=dict(type='DefaultSampler', shuffle={name.startswith('train')})."
        )
    if not loader.get('num_workers'):
        for key, off in (('persistent_workers', False), ('prefetch_factor', None)):
            if loader.get(key):
                raise UserError(
                    f'{name}.{key}={loader[key]} needs worker processes, and num_workers is '
                    f'{loader.get("num_workers", 0)}: set num_workers above 0 or {key}={off}.'
                )
    last = type_of((loader['dataset'].get('pipeline') or [None])[-1])
    if last in PACK_NOTHING:
        raise UserError(
            f'{name}.dataset.pipeline ends with {last}, which packs nothing for the model: append '
            "dict(type='PackSegInputs'), of mmdet dict(type='PackDetInputs'), of mmpretrain dict(type='PackInputs')."
        )


def _check_loop(cfg):
    loop = cfg.get('train_cfg')
    if not loop:
        return
    if 'type' in loop and 'by_epoch' in loop:
        raise UserError(f'train_cfg has both type={type_of(loop)!r} and by_epoch={loop["by_epoch"]}: leave one out.')
    kind = type_of(loop) or ('EpochBasedTrainLoop' if loop.get('by_epoch') else 'IterBasedTrainLoop')
    sampler = type_of((cfg.get('train_dataloader') or {}).get('sampler'))
    if kind == 'EpochBasedTrainLoop' and sampler == 'InfiniteSampler':
        raise UserError(
            "train_cfg counts epochs, and with train_dataloader.sampler.type='InfiniteSampler' the first "
            "one never ends: set sampler=dict(type='DefaultSampler', shuffle=True)."
        )
    if kind != 'IterBasedTrainLoop':
        return
    schedulers = cfg.get('param_scheduler') or []
    for i, scheduler in enumerate([schedulers] if isinstance(schedulers, dict) else schedulers):
        if (
            isinstance(scheduler, dict)
            and scheduler.get('by_epoch', True)
            and not scheduler.get('convert_to_iter_based')
        ):
            raise UserError(
                f'param_scheduler.{i}, a {type_of(scheduler)}, counts epochs, and train_cfg counts '
                'iterations, so it would never act: set by_epoch=False, and begin and end in iterations.'
            )
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if hook.get('by_epoch', True) and hook.get('interval', -1) > 0:
        raise UserError(
            f'default_hooks.checkpoint counts epochs, and train_cfg counts iterations, so nothing would be '
            f'saved every {hook["interval"]}: set by_epoch=False, and interval in iterations.'
        )


def _evaluators(cfg, name):
    found = cfg.get(name) or []
    return [each for each in ([found] if isinstance(found, dict) else found) if isinstance(each, dict)]


def _check_scores(cfg):
    """Raise a ``UserError`` if ``save_best`` names a score that the evaluation does not give."""
    best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    given = []
    for metric in _evaluators(cfg, 'val_evaluator'):
        names = _scores_of(metric)
        if names is None:
            return
        given += names
    for score in [best] if isinstance(best, str) else best or ():
        if given and score != 'auto' and score not in given:
            raise UserError(
                f'default_hooks.checkpoint.save_best={score!r} is no score of val_evaluator, which gives '
                f'{", ".join(dict.fromkeys(given))}{nearest(score, given)}'
            )


def _scores_of(metric):
    """The names of the scores that a metric gives; None for a metric that is not known here."""
    kind, prefix = type_of(metric), metric.get('prefix')
    if kind == 'IoUMetric':
        chosen = metric.get('iou_metrics', ['mIoU'])
        chosen = [chosen] if isinstance(chosen, str) else chosen
        names = ['aAcc', *(name for each in chosen for name in IOU_METRICS.get(each, ()))]
    elif kind == 'CocoMetric' and not metric.get('metric_items'):
        chosen, prefix = metric.get('metric', 'bbox'), prefix or 'coco'
        chosen = [chosen] if isinstance(chosen, str) else chosen
        if not set(chosen) <= {'bbox', 'segm'}:
            return None
        names = [f'{each}_{score}' for each in chosen for score in COCO_METRICS]
    elif kind == 'Accuracy' and not isinstance(metric.get('thrs', 0.0), (list, tuple)):
        chosen, prefix = metric.get('topk', 1), prefix or 'accuracy'
        names = [f'top{k}' for k in ([chosen] if isinstance(chosen, int) else chosen)]
    else:
        return None
    return [f'{prefix}/{name}' for name in names] if prefix else names


def _check_annotations(cfg, name):
    """Raise a ``UserError`` if an ``IoUMetric`` gets no label maps."""
    evaluator = name.replace('dataloader', 'evaluator')
    for metric in _evaluators(cfg, evaluator):
        if (
            type_of(metric) == 'IoUMetric'
            and not metric.get('format_only')
            and ('Annotations' not in str((cfg.get(name) or {}).get('dataset', 'Annotations')))
        ):
            raise UserError(
                f'{evaluator} is an IoUMetric, and {name}.dataset.pipeline loads no label maps: put '
                "dict(type='LoadAnnotations') after Resize, or set format_only=True."
            )
