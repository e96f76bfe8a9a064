"""COCO's annotation files are looked into before a run: mmdet passes over what it does not know, or stops later."""
import json
import os.path as osp

from mmtr.errors import UserError


def check_coco(kind, settings, path, folders, listed):
    """Check the annotation file of a data set that mmdet reads as COCO's; other data sets are left alone.

    Args:
        kind: Class of the data set.
        settings: Its arguments.
        path: The annotation file.
        folders: Of images ('img') and, for panoptic data, of label maps ('seg').
        listed: Function that tells whether a file is there.

    Raises:
        UserError: The file is of another task, has categories that the data set does not know, or lacks some that
            it does; label maps are not there.
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
    return {**getattr(kind, 'METAINFO', {}), **(settings.get('metainfo') or {})}.get('classes') or ()


def check_classes(model, kind, settings):
    """Check that a mask classification model of mmdet has as many classes as its data; raises ``UserError``."""
    head, classes = (model or {}).get('panoptic_head') or {}, _classes(kind, settings)
    counts = [head.get(f'num_{part}_classes') for part in ('things', 'stuff')]
    if classes and None not in counts and sum(counts) != len(classes):
        raise UserError(f'model.panoptic_head has {counts[0]} classes of things and {counts[1]} of stuff, but '
                        f'{kind.__name__} has {len(classes)} classes: set num_things_classes and '
                        'num_stuff_classes of model.panoptic_head.')


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
        raise UserError(f"'{path}' holds {found}, but {name} reads {reads}: set ann_file to the annotations of that "
                        'task.')
    for key in ('category_id', 'bbox', *['segmentation'] * with_masks) if not panoptic else ():
        absent = sum(key not in each for each in annotations)
        if absent:
            raise UserError(f"'{path}' holds {absent} of {len(annotations)} annotations without {key!r}, which {name} "
                            'reads: set ann_file to instance annotations.')


def _check_categories(path, objects, categories, classes, panoptic):
    """The names of the file's categories by id."""
    names = {category['id']: category['name'] for category in categories}
    used = {part['category_id'] for part in objects}
    unknown = sorted(used - names.keys())
    if unknown:
        raise UserError(f"'{path}' has annotations of category {unknown[0]}, which is none of its "
                        f'{len(names)} categories.')
    absent = [name for name in classes if name not in names.values()]
    # mmdet reads panoptic data of all categories or none, instances also of some.
    further = sorted(names[i] for i in used if names[i] not in classes) if panoptic and classes else []
    if absent or further:
        which = f'does not have {absent[0]!r}' if absent else f'has {further[0]!r}'
        raise UserError(f"The data set's classes are not those of '{path}', which {which}: set "
                        f"metainfo=dict(classes=...) of the data set, and the model's number of classes; the file has "
                        f'{", ".join(map(repr, list(names.values())[:5]))}{", ..." if len(names) > 5 else ""}.')
    return names


def _check_panoptic(path, data, names, folders, listed):
    try:
        import panopticapi.utils  # noqa: F401
    except ImportError:
        raise UserError('mmdet reads panoptic data with panopticapi, which is not installed: pip install '
                        'git+https://github.com/cocodataset/panopticapi.git') from None
    things = [bool(category.get('isthing')) for category in data['categories']]
    if things != sorted(things, reverse=True):
        first = names[data['categories'][things.index(False)]['id']]
        raise UserError(f"'{path}' lists the stuff {first!r} before things: mmdet numbers classes in the order of the "
                        'file, and things must come first.')
    maps = [osp.join(folders['seg'], image['file_name'].replace('.jpg', '.png')) for image in data['images']]
    absent = [each for each in maps if not listed(each)]
    if absent:
        raise UserError(f"{len(absent)} of {len(maps)} panoptic label maps are not there, the first is '{absent[0]}': "
                        "data_prefix.seg is the folder of COCO's panoptic PNGs.")
