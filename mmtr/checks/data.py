"""Check data sets before anything is built, so that a wrong path is reported at once, in one sentence."""

import inspect
import os
import os.path as osp
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmtr.checks.model_config import inner_model
from mmtr.config.model import model_of
from mmtr.config.types import type_name
from mmtr.datasets import BinaryDataset, LoadBinaryAnnotations
from mmtr.errors import UserError

from .building import in_words_of
from .coco import check_classes, check_coco
from .images_of_classes import check_images_of_classes, reads_classes
from .masks import check_masks, check_reduction

PAGE = 'docs/datasets.md'
#: Number of label maps that are read before a run; the others are checked as they are loaded.
SAMPLE = 8
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def check_data(cfg: Config, loaders: Iterable[str]) -> None:
    """Check every data set of the given loaders of a config.

    Args:
        cfg: The config.
        loaders: Names like ``('train_dataloader', 'val_dataloader')``; names that the config lacks are skipped.

    Raises:
        UserError: A folder or annotation file is not there, or images lack annotations: names the path, the layout
            that the data set reads, and the page that tells how to prepare it. Or the data set has no such setting;
            an annotation file is of another task or has other classes than data set and model; or one of the few
            label maps that are read is no label map, holds a label that is no class, or is not binary where it must be;
            or class folders are not those of the data set, the model or the other data sets.
    """
    folders = []
    for loader in loaders:
        for dataset in datasets_in((cfg.get(loader) or {}).get('dataset')):
            scope = dataset.get('_scope_') or cfg.get('default_scope') or 'mmengine'
            with in_words_of(cfg), DATASETS.switch_scope_and_registry(scope) as registry:
                found = _check(registry, dataset, inner_model(model_of(cfg)), scope)
                if found:
                    folders.append((loader, found))
    _check_same(folders)


def datasets_in(cfg: Any) -> Iterator[dict]:
    """Yield the data set configs in the ``dataset`` of a loader, without wrappers such as ``RepeatDataset``."""
    # Wrappers (RepeatDataset, ConcatDataset, ...) hold others under one of these two keys.
    if isinstance(cfg, (list, tuple)):
        for each in cfg:
            yield from datasets_in(each)
    elif isinstance(cfg, dict):
        inner = [cfg[key] for key in ('dataset', 'datasets') if key in cfg]
        if inner:
            yield from datasets_in(inner)
        else:
            yield cfg


def loads_annotations(step: dict) -> bool:
    """Whether a step of a pipeline loads annotations."""
    return 'Annotations' in type_name(step['type'])


def _settings(kind, cfg):
    """The settings of a data set: its config, and the defaults of its class and base classes."""
    settings = {}
    for base in reversed(kind.__mro__):
        if '__init__' in vars(base):
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.default is not parameter.empty:
                    settings[name] = parameter.default
    return {**settings, **cfg}


def _check(registry, cfg, model, scope):
    kind = registry.get(cfg['type']) if isinstance(cfg.get('type'), str) else cfg.get('type')
    if not inspect.isclass(kind):
        return  # the registry reports an unknown type
    settings = _settings(kind, cfg)
    _check_prefix(kind, settings)
    check_classes(model, kind, settings)
    check_reduction(kind, settings)
    root, prefixes = settings.get('data_root') or '', settings.get('data_prefix')
    remote = (settings.get('backend_args') or {}).get('backend', 'local') != 'local'
    if remote or '://' in root or '://' in str(prefixes):
        return
    if reads_classes(kind, settings):
        return check_images_of_classes(registry.build({**cfg, 'pipeline': [], 'lazy_init': True}), model)
    if not prefixes or settings.get('download'):
        return
    prefixes = dict(img_path=prefixes) if isinstance(prefixes, str) else prefixes
    folders = {key: osp.join(root, prefix) for key, prefix in prefixes.items() if prefix is not None}
    if not any(map(loads_annotations, settings.get('pipeline') or ())):  # such as a test split without annotations
        folders.pop('seg_map_path', None)
    names = osp.join(root, settings['ann_file']) if settings.get('ann_file') else None
    layout = _layout(kind.__name__, folders, names, settings)

    if root and not osp.isdir(root):
        raise UserError(f"The data root '{root}' is not there: {layout}.")
    for folder in folders.values():
        if folder and not osp.isdir(folder):
            raise UserError(f"The folder '{folder}' is not there: {layout}.")
    if names and not osp.exists(names):
        raise UserError(f"The annotation file '{names}' is not there: {layout}.")
    listed = {}  # each folder is listed once: faster than a look-up for each file
    if 'img_suffix' in settings and 'img_path' in folders:
        _check_pairs(registry, kind, cfg, settings, folders, layout, listed, model, scope)
    elif names:
        check_coco(kind, settings, names, folders, lambda path: _is_listed(path, listed))


def _check_same(folders):
    """Raise a ``UserError`` if data sets number other class folders."""
    for loader, found in folders[1:]:
        if found != folders[0][1]:
            other = sorted({*found} ^ {*folders[0][1]})[0]
            raise UserError(
                f'The class folders of {loader} are not those of {folders[0][0]}, of which one alone has {other!r}: '
                'classes are numbered by the sorted names of their folders, so all data sets need the same.'
            )


def _layout(name, folders, names, settings):
    suffix = dict(img_path=settings.get('img_suffix', ''), seg_map_path=settings.get('seg_map_suffix', ''))
    what = dict(img_path='images', img='images', seg_map_path='annotations', seg='annotations')
    reads = [
        f"{what.get(key, key)} from '{osp.join(folder, '*' + suffix.get(key, ''))}'" for key, folder in folders.items()
    ]
    if names:
        reads.append(f"{'image names' if 'img_suffix' in settings else 'annotations'} from '{names}'")
    return f'{name} reads {" and ".join(reads)}; {PAGE} tells how to get and lay out the data'


def _check_prefix(kind, settings):
    prefixes = settings.get('data_prefix')
    if isinstance(prefixes, str) and isinstance(_settings(kind, {}).get('data_prefix'), str):  # mmpretrain's
        return
    wrong = prefixes is not None and (
        not isinstance(prefixes, dict)
        or not all(isinstance(prefix, str) or prefix is None for prefix in prefixes.values())
    )
    if wrong:
        keys = 'img_path=..., seg_map_path=...' if 'img_suffix' in settings else 'img=...'
        raise UserError(
            f'data_prefix={prefixes!r} of {kind.__name__} must be dict({keys}) with the folders of images '
            'and annotations below data_root.'
        )


def _check_pairs(registry, kind, cfg, settings, folders, layout, listed, model, scope):
    bare = {key: value for key, value in cfg.items() if key not in ('pipeline', 'lazy_init')}
    pairs = registry.build({**bare, 'pipeline': [], 'lazy_init': True}).load_data_list()
    if not pairs:
        raise UserError(f"'{folders['img_path']}' holds no image '*{settings['img_suffix']}': {layout}.")
    keys = [('img_path', 'image')] + [('seg_map_path', 'annotation')] * ('seg_map_path' in folders)
    for key, what in keys:
        paths = [pair[key] for pair in pairs if key in pair]
        absent = [path for path in paths if not _is_listed(path, listed)]
        if absent:
            raise UserError(
                f"{len(absent)} of {len(paths)} {what} files are not there, the first is '{absent[0]}': {layout}."
            )
    sample = pairs[:: len(pairs) // SAMPLE + 1] if 'seg_map_path' in folders else []
    if issubclass(kind, BinaryDataset):
        load = LoadBinaryAnnotations()
        for pair in sample:
            load(pair)
    else:
        check_masks(sample, settings['pipeline'], model, scope)


def _is_listed(path, listed):
    folder, name = osp.split(path)
    if folder not in listed:
        listed[folder] = set(os.listdir(folder)) if osp.isdir(folder) else set()
    return name in listed[folder]


def images_in(folder: Union[str, Path], pattern: str = '*', what: str = '--images') -> list[Path]:
    """List the image files in a folder that match the glob ``pattern``, sorted.

    Args:
        what: Name of the folder in the error.

    Raises:
        UserError: There are none.
    """
    paths = sorted(path for path in Path(folder).glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{what} '{folder}' holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return paths
