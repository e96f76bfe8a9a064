import pytest
import torch
from mmengine.config import Config

from mmtr import UserError
from mmtr.inference.inferencers import build_inferencer, dataset_meta

NAMES, COLOURS = ['sky', 'grass', 'sand'], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]


class Model(torch.nn.Module):
    num_classes = 3


def config(**metainfo):
    dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='CocoDataset',
            metainfo=metainfo,
            data_root='nowhere',
            ann_file='none.json',
            pipeline=[dict(type='LoadImageFromFile')],
        ),
    )
    return Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dataset)))


@pytest.fixture(autouse=True)
def scope_of_mmdet():
    from mmdet.utils import register_all_modules

    register_all_modules()


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=NAMES, palette=COLOURS)),
        dict(CLASSES=tuple(NAMES), PALETTE=list(map(list, COLOURS))),
        dict(dataset_meta=dict(CLASSES=NAMES, palette=COLOURS)),
    ],
)
def test_names_and_colours_of_the_checkpoint_come_first(meta):
    other = config(classes=NAMES[::-1], palette=COLOURS[::-1])
    assert dataset_meta(other, meta, Model()) == (dict(classes=NAMES, palette=COLOURS), [])


@pytest.mark.parametrize('meta', [{}, dict(dataset_meta=dict(classes=['one', 'two'], palette=[(0, 0, 0)] * 2))])
def test_else_those_of_the_test_data(meta):
    assert dataset_meta(config(classes=NAMES, palette=COLOURS), meta, Model()) == (
        dict(classes=NAMES, palette=COLOURS),
        [],
    )


def test_colours_are_of_the_same_classes():
    names = dict(dataset_meta=dict(classes=NAMES))
    found, absent = dataset_meta(config(classes=NAMES, palette=COLOURS), names, Model())
    assert found == dict(classes=NAMES, palette=COLOURS) and absent == []
    found, absent = dataset_meta(config(classes=NAMES[::-1], palette=COLOURS), names, Model())
    assert found['classes'] == NAMES and absent == ['palette'] and found['palette'] != COLOURS
    assert len(set(found['palette'])) == 3


def test_names_that_nobody_has_are_made_up():
    found, absent = dataset_meta(config(), {}, Model())  # COCO's are not the three of the model
    assert found['classes'] == ['class 0', 'class 1', 'class 2'] and len(found['palette']) == 3
    assert absent == ['classes', 'palette']


def test_another_kind_of_model_is_refused():
    with pytest.raises(
        UserError, match='Model is no segmentor of mmseg, no detector of mmdet and no classifier of mmpretrain'
    ):
        build_inferencer(config(), Model(), {})
