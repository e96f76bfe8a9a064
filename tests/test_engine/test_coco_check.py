"""Annotation files of another task, other classes or missing label maps are one sentence, before a run."""

import json
import sys

import pytest
from mmengine.config import Config

from mmtr.checks.data import check_data
from mmtr.errors import UserError
from tests.drawn_coco import METAINFO, PANOPTIC, draw_coco

TRAIN = ('train_dataloader',)
INSTANCE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]


@pytest.fixture
def coco(tmp_path):
    return draw_coco(tmp_path / 'coco', counts=(1, 2))


def cfg(root, model=None, panoptic=False, **dataset):
    prefix = dict(img='images/', **(dict(seg='panoptic/') if panoptic else {}))
    common = dict(
        type='CocoPanopticDataset' if panoptic else 'CocoDataset',
        data_root=str(root),
        data_prefix=prefix,
        metainfo=PANOPTIC if panoptic else METAINFO,
        ann_file='panoptic.json' if panoptic else 'instances.json',
        pipeline=[dict(type='LoadPanopticAnnotations')] if panoptic else INSTANCE,
    )
    return Config(dict(default_scope='mmdet', model=model, train_dataloader=dict(dataset={**common, **dataset})))


def change(root, name, edit):
    data = json.loads((root / name).read_text())
    edit(data)
    (root / name).write_text(json.dumps(data))


def model(things, stuff):
    return dict(panoptic_head=dict(num_things_classes=things, num_stuff_classes=stuff))


@pytest.mark.parametrize('panoptic', [False, True])
def test_data_that_are_there_pass(coco, panoptic):
    check_data(cfg(coco, model(2, 2 if panoptic else 0), panoptic), TRAIN)


def test_a_part_of_the_classes_of_a_file_may_be_used(coco):
    check_data(cfg(coco, model(1, 0), metainfo=dict(classes=('disc',))), TRAIN)


@pytest.mark.parametrize(
    'panoptic, settings, said',
    [
        (
            False,
            dict(ann_file='panoptic.json'),
            "panoptic.json' holds panoptic segments, but CocoDataset reads instances",
        ),
        (
            True,
            dict(ann_file='instances.json'),
            "instances.json' holds instances, but CocoPanopticDataset reads panoptic",
        ),
        (False, dict(metainfo=dict(classes=('box', 'ball'))), "does not have 'ball': set metainfo.* 'box', 'disc'"),
        (False, dict(metainfo={}), "does not have 'person'"),
        (True, dict(metainfo=dict(PANOPTIC, classes=('box', 'disc', 'grass'))), "which has 'sand'"),
    ],
)
def test_another_file_than_the_config_expects(coco, panoptic, settings, said):
    with pytest.raises(UserError, match=said):
        check_data(cfg(coco, None, panoptic, **settings), TRAIN)


@pytest.mark.parametrize(
    'name, edit, said',
    [
        (
            'instances.json',
            lambda data: data['annotations'][0].update(category_id=99),
            'annotations of category 99, which is none of its 2 categories',
        ),
        ('panoptic.json', lambda data: data['annotations'][0]['segments_info'][0].update(category_id=7), 'category 7'),
        (
            'instances.json',
            lambda data: [each.pop('segmentation') for each in data['annotations'][:2]],
            r"holds 2 of \d annotations without 'segmentation'",
        ),
        (
            'instances.json',
            lambda data: [(each.pop('bbox'), each.update(caption='')) for each in data['annotations']],
            "without 'bbox', which CocoDataset reads: set ann_file to instance annotations",
        ),
        ('instances.json', lambda data: data.pop('categories'), 'it has no categories'),
        ('panoptic.json', lambda data: data['categories'].reverse(), "lists the stuff 'sand' before things"),
    ],
)
def test_a_file_that_is_not_as_it_should(coco, name, edit, said):
    change(coco, name, edit)
    with pytest.raises(UserError, match=said):
        check_data(cfg(coco, None, panoptic=name == 'panoptic.json'), TRAIN)


@pytest.mark.parametrize('text', ['{', '[]', '"images"'])
def test_a_file_of_another_format(coco, text):
    (coco / 'instances.json').write_text(text)
    with pytest.raises(UserError, match="is no annotation file of COCO's format: it has no images"):
        check_data(cfg(coco), TRAIN)


def test_missing_label_maps_are_counted_and_the_first_is_named(coco):
    (coco / 'panoptic' / '1.png').unlink()
    with pytest.raises(UserError, match=r"^1 of 2 panoptic label maps are not .*/panoptic/1\.png'"):
        check_data(cfg(coco, panoptic=True), TRAIN)


def test_panoptic_data_need_a_package_that_is_named(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, 'panopticapi.utils', None)
    with pytest.raises(UserError, match='panopticapi, which is not installed: pip install git'):
        check_data(cfg(coco, panoptic=True), TRAIN)


@pytest.mark.parametrize('panoptic, things, stuff', [(False, 80, 0), (False, 2, 2), (True, 2, 53)])
def test_the_model_has_the_classes_of_its_data(coco, panoptic, things, stuff):
    said = f'{things} classes of things and {stuff} of stuff, but .* has {4 if panoptic else 2} classes'
    with pytest.raises(UserError, match=said):
        check_data(cfg(coco, model(things, stuff), panoptic), TRAIN)


def test_label_maps_of_mmseg_in_a_config_of_mmdet_are_looked_for(coco):
    dataset = dict(
        type='ADE20KDataset',
        _scope_='mmseg',
        data_root=str(coco),
        img_suffix='.jpg',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        data_prefix=dict(img_path='images', seg_map_path='semantic'),
    )
    loader = Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))
    check_data(loader, TRAIN)
    (coco / 'semantic' / '0.png').unlink()
    with pytest.raises(UserError, match='^1 of 2 annotation files are not there'):
        check_data(loader, TRAIN)
