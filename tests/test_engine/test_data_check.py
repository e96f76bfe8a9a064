"""Wrong paths are one sentence, before anything is built."""

import json
import shutil

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmtr.checks.data import check_data
from mmtr.errors import UserError

TRAIN = ('train_dataloader',)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


@TRANSFORMS.register_module(force=True)
class ColoursToLabels:
    """A transform of the user's own."""


def cfg(scope='mmseg', **dataset):
    return Config(dict(default_scope=scope, train_dataloader=dict(dataset=dataset)))


def ade(root, **changes):
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    return {
        **dict(type='ADE20KDataset', data_root=str(root), img_suffix='.png', data_prefix=prefix, pipeline=LOAD),
        **changes,
    }


def test_data_that_are_there_pass(drawn_data, tiny_segmenter):
    check_data(tiny_segmenter, ('train_dataloader', 'val_dataloader', 'no_such_dataloader'))
    check_data(cfg(**ade(drawn_data)), TRAIN)


def test_a_missing_root_says_the_layout_from_the_defaults_of_the_class_and_the_page(tmp_path):
    dataset = ade(tmp_path / 'no')
    del dataset['img_suffix']
    with pytest.raises(UserError) as raised:
        check_data(cfg(**dataset), TRAIN)
    said = str(raised.value)
    assert f"The data root '{tmp_path}/no' is not there" in said
    assert f"ADE20KDataset reads images from '{tmp_path}/no/images/training/*.jpg'" in said
    assert f"annotations from '{tmp_path}/no/annotations/training/*.png'" in said
    assert 'docs/datasets.md' in said


@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_a_missing_folder_is_named(drawn_data, kind):
    shutil.rmtree(drawn_data / kind / 'training')
    with pytest.raises(UserError, match=f"The folder '{drawn_data}/{kind}/training' is not there"):
        check_data(cfg(**ade(drawn_data)), TRAIN)


def test_missing_annotations_are_counted_and_the_first_is_named(drawn_data):
    for name in ('2.png', '4.png'):
        (drawn_data / 'annotations' / 'training' / name).unlink()
    with pytest.raises(UserError, match=r"^2 of 6 annotation files .* '\S*/annotations/training/2\.png'"):
        check_data(cfg(**ade(drawn_data)), TRAIN)


def test_annotations_that_nothing_reads_may_be_missing(drawn_data):
    shutil.rmtree(drawn_data / 'annotations')
    check_data(cfg(**ade(drawn_data, pipeline=LOAD[:1])), TRAIN)


def test_an_empty_folder_is_said(drawn_data):
    with pytest.raises(UserError, match=r"images/training' holds no image '\*\.tif'"):
        check_data(cfg(**ade(drawn_data, img_suffix='.tif')), TRAIN)


def test_a_list_of_names_is_followed(drawn_data):
    (drawn_data / 'names.txt').write_text('0\n3\n')
    check_data(cfg(**ade(drawn_data, ann_file='names.txt')), TRAIN)
    (drawn_data / 'names.txt').write_text('0\n99\n')
    with pytest.raises(UserError, match=r"^1 of 2 image files .*training/99\.png'"):
        check_data(cfg(**ade(drawn_data, ann_file='names.txt')), TRAIN)
    with pytest.raises(UserError, match=r"The annotation file '\S*/gone\.txt' is not there"):
        check_data(cfg(**ade(drawn_data, ann_file='gone.txt')), TRAIN)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda bad, good: dict(type='RepeatDataset', times=2, dataset=bad),
        lambda bad, good: dict(type='ConcatDataset', datasets=[good, bad]),
        lambda bad, good: dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[bad])),
    ],
    ids=['repeat', 'concat', 'both'],
)
def test_wrapped_data_sets_are_found(drawn_data, wrap):
    good = ade(drawn_data)
    check_data(cfg(**wrap(good, good)), TRAIN)
    with pytest.raises(UserError, match='/gone'):
        check_data(cfg(**wrap(ade(drawn_data / 'gone'), good)), TRAIN)


@pytest.mark.parametrize('prefix', ['images', dict(img_path=3)])
def test_folders_are_given_by_name(drawn_data, prefix):
    with pytest.raises(UserError, match=r'data_prefix=.* of ADE20KDataset must be dict\(img_path=..., seg_map_path'):
        check_data(cfg(**ade(drawn_data, data_prefix=prefix)), TRAIN)
    with pytest.raises(UserError, match=r'of CocoDataset must be dict\(img=...\)'):
        check_data(cfg(scope='mmdet', type='CocoDataset', data_prefix=prefix), TRAIN)


def test_label_maps_are_not_judged_where_a_transform_of_the_users_own_may_change_them(drawn_data):
    path = drawn_data / 'annotations' / 'training' / '3.png'
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="3.png' has 3 channels"):
        check_data(cfg(**ade(drawn_data)), TRAIN)
    check_data(cfg(**ade(drawn_data, pipeline=[*LOAD, dict(type='ColoursToLabels')])), TRAIN)


def test_coco_annotations_are_looked_for(tmp_path):
    (tmp_path / 'train').mkdir()
    coco = cfg(
        scope='mmdet',
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='instances.json',
        data_prefix=dict(img='train/'),
        pipeline=[],
    )
    with pytest.raises(UserError, match=r"annotation file '\S*/instances\.json' is not there: CocoDataset"):
        check_data(coco, TRAIN)
    (tmp_path / 'instances.json').write_text(json.dumps({}))
    check_data(coco, TRAIN)
