"""Check annotation files in COCO's format before a run: mmdet ignores what it does not know, or stops hours later."""

import json
import os.path as osp
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

from mmtr.config.types import type_name
from mmtr.errors import UserError
from mmtr.words import some


def check_coco(kind: type, settings: dict, path: str, folders: dict[str, str], listed: Callable[[str], bool]) -> None:
    """Check the annotation file of a data set that mmdet reads in COCO's format; accept other data sets unchecked.

    Args:
        kind: Class of the data set.
        settings: Arguments of the data set.
        path: The annotation file.
        folders: Folders of the images ('img') and, for panoptic data, of the label maps ('seg').
        listed: Tells whether a file exists.

    Raises:
        UserError: The file is of another task, has categories that the data set does not know, or lacks categories
            of the data set; or label maps are not there.
    """
    loader = next((base.__name__ for base in kind.__mro__ if 'load_data_list' in vars(base)), None)
    pipeline = str(settings.get('pipeline'))
    if loader != 'CocoDataset' or 'Annotations' not in pipeline:
        return
    panoptic = any(base.__name__ == 'CocoPanopticDataset' for base in kind.__mro__)
    data = _read(path)
    annotations = data.get('annotations', [])
    _check_task(path, kind.__name__, annotations, panoptic, with_masks="'with_mask': True" in pipeline)
    objects = [part for each in annotations for part in each['segments_info']] if panoptic else annotations
    names = _check_categories(path, objects, data['categories'], _classes(kind, settings), panoptic)
    if panoptic:
        _check_panoptic(path, data, names, folders, listed)


def _classes(kind, settings):
    own = settings.get('classes')  # of mmpretrain's: names, or a file of them
    if isinstance(own, str):
        own = Path(own).read_text().splitlines() if osp.isfile(own) else None
    own = dict(classes=own) if own else {}
    return {**getattr(kind, 'METAINFO', {}), **own, **(settings.get('metainfo') or {})}.get('classes') or ()


def check_classes(model: Optional[dict], kind: type, settings: dict) -> None:
    """Check that every head of a model has as many classes as the data set.

    Args:
        model: Config of the model.
        kind: Class of the data set.
        settings: Arguments of the data set.

    Raises:
        UserError: A head has another number of classes; or ``metainfo`` is not written as mmseg and mmdet read it.
    """
    meta = settings.get('metainfo') or {}
    if isinstance(meta, dict):
        for key in ('CLASSES', 'PALETTE'):
            if key in meta:
                raise UserError(f'The data set has metainfo.{key}, which nothing reads: write {key.lower()}.')
        if isinstance(meta.get('classes'), str) and not osp.isfile(meta['classes']):
            raise UserError(
                f"The data set's metainfo.classes={meta['classes']!r} is text, of which each letter would "
                f'be a class: write ({meta["classes"]!r}, ).'
            )
    classes = _classes(kind, settings)
    _check_names(kind, meta, classes)
    bases = {base.__name__ for base in kind.__mro__}
    # Models with a language model take their classes from a prompt; trackers see one class, whatever the data call it.
    if not isinstance(classes, (list, tuple)) or 'language_model' in (model or {}) or 'BaseVideoDataset' in bases:
        return
    for key, head in heads_in(model or {}):
        counts = [head.get(f'num_{part}_classes') for part in ('things', 'stuff')]
        if None not in counts and classes and sum(counts) != len(classes):
            raise UserError(
                f'{key} has {counts[0]} classes of things and {counts[1]} of stuff, but {kind.__name__} '
                f'has {len(classes)} classes: set num_things_classes and num_stuff_classes of {key}.'
            )
        # Panoptic data also train heads for instances only, which have fewer classes.
        count = None if 'CocoPanopticDataset' in bases else head.get('num_classes')
        if None in counts and isinstance(count, int) and classes and count != len(classes):
            raise UserError(
                f'{key}.num_classes={count}, but {kind.__name__} has {len(classes)} classes '
                f'({some(map(repr, classes), 5)}): set num_classes={len(classes)} of every head, or '
                'metainfo=dict(classes=...) of the data set, of which those are the names.'
            )


def _check_names(kind, meta, classes):
    """Raise a ``UserError`` if mmseg cannot map the names of classes, or there is not one colour a class."""
    own = getattr(kind, 'METAINFO', {}).get('classes')
    if not hasattr(kind, 'get_label_map') or not isinstance(classes, (list, tuple)):
        return
    strange = [name for name in classes if own and name not in own]
    if strange:
        raise UserError(
            f'{kind.__name__} reads {len(own)} classes of its own, of which {strange[0]!r} is none: data '
            "of your own are read by type='BaseSegDataset'."
        )
    palette = meta.get('palette') or getattr(kind, 'METAINFO', {}).get('palette') or classes
    if len(palette) < len(classes) or not own and len(palette) != len(classes):
        raise UserError(
            f"The data set's metainfo has {len(classes)} classes and {len(palette)} colours in palette: "
            'give one colour a class, or leave palette out.'
        )


def heads_in(model: dict, path: str = 'model') -> Iterator[tuple[str, dict]]:
    """Yield (dotted key, config) of each head in a model's config that predicts the classes of the data.

    Args:
        path: Key of ``model`` in the config.
    """
    for key, value in model.items():
        if key in ('rpn_head', 'semantic_head', 'teacher'):  # predicts objectness; stuff; of another model
            continue
        for i, each in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if not isinstance(each, dict):
                continue
            below = f'{path}.{key}.{i}' if isinstance(value, (list, tuple)) else f'{path}.{key}'
            if key.endswith('head') and type_name(each) != 'STDCHead':  # it predicts boundaries
                yield below, each
            yield from heads_in(each, below)


def _read(path):
    with open(path, encoding='utf-8') as file:
        try:
            data = json.load(file)
        except ValueError:
            data = None
    absent = [key for key in ('images', 'categories') if not isinstance(data, dict) or key not in data]
    if absent:
        raise UserError(f"'{path}' is no annotation file of COCO's format: it has no {' and no '.join(absent)}.")
    return data


def _check_task(path, name, annotations, panoptic, with_masks):
    if any('segments_info' in each for each in annotations) != panoptic and annotations:
        found, reads = ('instances', 'panoptic') if panoptic else ('panoptic segments', 'instances')
        raise UserError(
            f"'{path}' holds {found}, but {name} reads {reads}: set ann_file to the annotations of that task."
        )
    for key in ('category_id', 'bbox', *['segmentation'] * with_masks) if not panoptic else ():
        absent = sum(key not in each for each in annotations)
        if absent:
            raise UserError(
                f"'{path}' holds {absent} of {len(annotations)} annotations without {key!r}, which {name} "
                'reads: set ann_file to instance annotations.'
            )


def _check_categories(path, objects, categories, classes, panoptic):
    """The names of the file's categories by id."""
    names = {category['id']: category['name'] for category in categories}
    used = {part['category_id'] for part in objects}
    unknown = sorted(used - names.keys())
    if unknown:
        raise UserError(
            f"'{path}' has annotations of category {unknown[0]}, which is none of its {len(names)} categories."
        )
    absent = [name for name in classes if name not in names.values()]
    # mmdet can select some categories of instance data, but not of panoptic data.
    further = sorted(names[i] for i in used if names[i] not in classes) if panoptic and classes else []
    if absent or further:
        which = f'does not have {absent[0]!r}' if absent else f'has {further[0]!r}'
        raise UserError(
            f"The data set's classes are not those of '{path}', which {which}: set "
            f"metainfo=dict(classes=...) of the data set, and the model's number of classes; the file has "
            f'{some(map(repr, names.values()), 5)}.'
        )
    return names


def _check_panoptic(path, data, names, folders, listed):
    try:
        import panopticapi.utils  # noqa: F401
    except ImportError:
        raise UserError(
            'mmdet reads panoptic data with panopticapi, which is not installed: pip install '
            'git+https://github.com/cocodataset/panopticapi.git'
        ) from None
    things = [bool(category.get('isthing')) for category in data['categories']]
    if things != sorted(things, reverse=True):
        first = names[data['categories'][things.index(False)]['id']]
        raise UserError(
            f"'{path}' lists the stuff {first!r} before things: mmdet numbers classes in the order of the "
            'file, and things must come first.'
        )
    maps = [osp.join(folders['seg'], image['file_name'].replace('.jpg', '.png')) for image in data['images']]
    absent = [each for each in maps if not listed(each)]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(maps)} panoptic label maps are not there, the first is '{absent[0]}': "
            "data_prefix.seg is the folder of COCO's panoptic PNGs."
        )
