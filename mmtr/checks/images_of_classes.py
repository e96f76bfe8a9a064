"""The images of a classifier's data and their classes, looked at before a run: mmpretrain stops later, or never."""

import os
import os.path as osp

import numpy as np
from mmengine.dataset import BaseDataset

from mmtr.checks.coco import heads_in
from mmtr.checks.labels import check_classes_of_images
from mmtr.errors import UserError

PAGE = 'docs/datasets.md'
#: Images of a list that are looked for; the others are when they are loaded.
SAMPLE = 100


def reads_classes(kind: type, settings: dict) -> bool:
    """Tell whether a data set reads as mmpretrain's ``CustomDataset``: class folders, or a list of images and labels.

    Args:
        kind: Class of the data set.
        settings: Its arguments.
    """
    loader = next((base.__name__ for base in kind.__mro__ if 'load_data_list' in vars(base)), None)
    return loader == 'CustomDataset' and 'with_label' in settings


def check_images_of_classes(dataset: BaseDataset, model: dict) -> list[str]:
    """Check that the images of a data set are there, and of the classes of the model.

    Args:
        dataset: The data set, before it reads its images.
        model: Config of the model.

    Returns:
        The sorted names of its class folders, if it has some.

    Raises:
        UserError: A folder, file or image is not there; there are other classes than those of data set and model.
    """
    name, root = type(dataset).__name__, dataset.data_root
    folder, file = dataset.data_prefix['img_path'], dataset.ann_file
    if file:
        reads = f"the names of images{' and the numbers of their classes' * dataset.with_label} from '{file}'"
    else:
        reads = f"the images of each class from '{osp.join(folder, 'CLASS', '*')}'"
    layout = f'{name} reads {reads}; {PAGE} tells how to get and lay out the data'
    if root and not osp.isdir(root):
        raise UserError(f"The data root '{root}' is not there: {layout}.")
    if not osp.isdir(folder):
        raise UserError(f"The folder '{folder}' is not there: {layout}.")
    if file:
        _check_list(dataset, folder, file, layout, model)
        return []
    if not _has_image(folder, dataset):
        raise UserError(f"'{folder}' holds no image ({', '.join(sorted(dataset.extensions))}): {layout}.")
    return _check_folders(name, folder, dataset.CLASSES, model, layout) if dataset.with_label else []


def _has_image(folder, dataset):
    return any(dataset.is_valid_file(file) for _, _, files in os.walk(folder, followlinks=True) for file in files)


def _check_folders(name, folder, classes, model, layout):
    # mmengine passes over hidden ones.
    found = sorted(each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith('.'))
    if not found:
        raise UserError(
            f"'{folder}' holds images and no class folders: put those of each class into a folder of its own, or set "
            "ann_file to a file with lines like 'image.jpg 0', by default meta/train.txt or meta/val.txt of ImageNet; "
            f'{layout}.'
        )
    tell = 'set metainfo=dict(classes=...) of every data set to their names, in sorted order, and num_classes='
    if classes and len(classes) != len(found):
        raise UserError(
            f"'{folder}' holds {len(found)} class folders, but {name} has {len(classes)} classes: {tell}{len(found)} "
            'of every head.'
        )
    if classes and set(classes) == set(found) and list(classes) != found:
        raise UserError(
            f"The classes of {name} are the folders in '{folder}' in another order: mmpretrain numbers them in sorted "
            f'order, so metainfo.classes must begin with {found[0]!r}.'
        )
    for key, head in heads_in(model):
        count = head.get('num_classes')
        if isinstance(count, int) and count != len(found):
            raise UserError(
                f"{key}.num_classes={count}, but '{folder}' holds {len(found)} class folders: {tell}{len(found)}."
            )
    return found


def _check_list(dataset, folder, file, layout, model):
    if not osp.isfile(file):
        raise UserError(f"The annotation file '{file}' is not there: {layout}.")
    with open(file, encoding='utf-8') as opened:
        lines = opened.read().splitlines()
    if not lines:
        raise UserError(f"'{file}' lists no image: {layout}.")
    names = lines
    if dataset.with_label:
        pairs = [line.strip().rsplit(' ', 1) for line in lines]
        wrong = next((i for i, pair in enumerate(pairs) if len(pair) != 2 or not pair[1].lstrip('-').isdigit()), None)
        if wrong is not None:
            raise UserError(
                f"Line {wrong + 1} of '{file}' is {lines[wrong]!r}, and must be the name of an image and the number of "
                "its class, such as 'image.jpg 0'."
            )
        names = [name for name, _ in pairs]
        counts = [head.get('num_classes') for _, head in heads_in(model)] + [len(dataset.CLASSES or ())]
        count = next((n for n in counts if isinstance(n, int) and n > 0), None)
        if count:
            check_classes_of_images(np.array([int(label) for _, label in pairs]), count, file)
    for name in names[:: len(names) // SAMPLE + 1]:
        if not osp.isfile(osp.join(folder, name)):
            raise UserError(f"The image '{osp.join(folder, name)}' of '{file}' is not there: {layout}.")
