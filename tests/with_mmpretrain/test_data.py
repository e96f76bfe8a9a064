"""Images of classes are looked at before anything is built."""

import shutil

import pytest
from mmengine.config import Config

from mmtr.checks.config import check_config
from mmtr.checks.data import check_data
from mmtr.errors import UserError
from tests.tiny_classifier import CLASSES, classifier_cfg, draw_classes

LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def root(tmp_path):
    draw_classes(tmp_path / 'data')
    return tmp_path / 'data'


def refused(match, cfg, loaders=LOADERS):
    with pytest.raises(UserError, match=match) as raised:
        check_data(cfg, loaders)
    assert '\n' not in str(raised.value)


def dataset(cfg, **changes):
    """The config with other settings of its training data; None: without it."""
    cfg.train_dataloader.dataset.update(changes)
    for key in [key for key, value in changes.items() if value is None]:
        del cfg.train_dataloader.dataset[key]
    return cfg


def test_class_folders_that_are_there_pass(root, tmp_path):
    cfg = classifier_cfg(root, tmp_path)
    check_data(cfg, LOADERS)
    check_data(dataset(cfg, metainfo=None), LOADERS)
    check_data(dataset(cfg, classes=list(CLASSES), type='ImageNet', data_prefix='', split='train'), LOADERS)
    check_data(dataset(cfg, data_prefix=dict(img_path='train'), split=None, type='CustomDataset'), LOADERS)


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet'])
def test_what_is_missing_is_named_with_the_layout(root, tmp_path, kind):
    def cfg(**changes):
        return dataset(classifier_cfg(root, tmp_path), type=kind, **changes)

    layout = rf"{kind} reads the images of each class from '\S*/CLASS/\*'; docs/datasets.md"
    refused(rf"^The data root '\S*/gone' is not there: {layout}", cfg(data_root=str(root / 'gone')))
    refused(rf"^The folder '{root}/gone' is not there: {layout}", cfg(data_prefix='gone'))
    refused(rf"^The annotation file '{root}/gone.txt' is not there: {kind} reads", cfg(ann_file='gone.txt'))
    (root / 'empty/blue').mkdir(parents=True)
    refused(rf"^'{root}/empty' holds no image \(\.bmp, .*\): {layout}", cfg(data_prefix='empty'))


def test_images_without_class_folders_need_a_list(root, tmp_path):
    """As of the validation images of ImageNet, unpacked."""
    for path in (root / 'val').glob('*/*.png'):
        shutil.move(path, root / 'val')
    for name in CLASSES:
        (root / 'val' / name).rmdir()
    cfg = classifier_cfg(root, tmp_path)
    cfg.val_dataloader.dataset.update(type='ImageNet', split='val', data_prefix='')
    cfg.val_dataloader.dataset.pop('metainfo')
    cfg.model.head.num_classes = 1000
    refused(rf"^'{root}/val' holds images and no class folders: .* meta/val\.txt", cfg, ('val_dataloader',))
    lines = [f'{path.name} {CLASSES.index(path.name[:-5])}' for path in sorted((root / 'val').iterdir())]
    file = root / 'meta/val.txt'
    file.parent.mkdir()
    file.write_text('\n'.join(lines))
    check_data(cfg, ('val_dataloader',))
    file.write_text('\n'.join([*lines, 'a.png']))
    refused(rf"^Line 13 of '{file}' is 'a.png', and must be", cfg, ('val_dataloader',))
    file.write_text('\n'.join([*lines, 'a.png 1000']))
    refused(rf"^'{file}' has the label 1000, but labels must be 0 to 999", cfg, ('val_dataloader',))
    file.write_text('\n'.join([*lines, 'a.png 3']))
    refused(rf"^The image '{root}/val/a.png' of '{file}' is not there", cfg, ('val_dataloader',))
    file.write_text('')
    refused(rf"^'{file}' lists no image", cfg, ('val_dataloader',))


def test_fewer_classes_than_the_head_has_are_told_apart(root, tmp_path):
    cfg = classifier_cfg(root, tmp_path)
    imagenet = dataset(classifier_cfg(root, tmp_path), type='ImageNet', metainfo=None)
    refused(r'^model.head.num_classes=4, but ImageNet has 1000 classes', imagenet)
    imagenet.model.head.num_classes = 1000
    refused(
        rf"^'{root}/train' holds 4 class folders, but ImageNet has 1000 classes: set metainfo=dict\(.*num_cl.*4 ",
        imagenet,
        ('train_dataloader',),
    )
    dataset(cfg, metainfo=None).model.head.num_classes = 7
    refused(rf"^model.head.num_classes=7, but '{root}/train' holds 4 class folders", cfg, ('train_dataloader',))


def test_classes_are_numbered_alike(root, tmp_path):
    cfg = dataset(classifier_cfg(root, tmp_path), metainfo=dict(classes=CLASSES[::-1]))
    refused("in another order: .* must begin with 'blue'", cfg)
    cfg = classifier_cfg(root, tmp_path)
    for loader in LOADERS:
        cfg[loader].dataset.metainfo = dict(classes=['names', 'of', 'our', 'own'])
    (root / 'val/blue').rename(root / 'val/yellow')
    refused("^The class folders of val_dataloader are not those of train_dataloader, .* has 'blue'", cfg)


def test_unlabelled_images_need_no_classes(root, tmp_path):
    check_data(dataset(classifier_cfg(root, tmp_path), with_label=False), LOADERS)


def test_the_best_score_is_one_of_the_metric(root, tmp_path):
    cfg = classifier_cfg(root, tmp_path)
    check_config(cfg, LOADERS)
    cfg.default_hooks.checkpoint.save_best = 'top1'
    with pytest.raises(UserError, match="save_best='top1' is no score .* accuracy/top1, accuracy/top2"):
        check_config(cfg, LOADERS)


def test_a_pipeline_that_packs_nothing_is_said(root, tmp_path):
    cfg = Config(classifier_cfg(root, tmp_path).to_dict())
    cfg.train_dataloader.dataset.pipeline.pop()
    with pytest.raises(UserError, match='of mmpretrain dict'):
        check_config(cfg, LOADERS)
