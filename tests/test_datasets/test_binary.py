"""Masks of foreground and background: what is read, and what is refused in one sentence."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from torch.utils.data import DataLoader

from mmtr import UserError
from mmtr.checks import data as data_check
from mmtr.datasets import BinaryDataset, LoadBinaryAnnotations
from mmtr.registry import DATASETS, TRANSFORMS

LOAD = dict(type='mmtr.LoadBinaryAnnotations')


def disc(height=40, width=60):
    y, x = np.ogrid[:height, :width]
    return (y - 15) ** 2 + (x - 33) ** 2 < 150


def grey(mask):
    return Image.fromarray(255 * mask.astype(np.uint8))


def load(path, **info):
    return LoadBinaryAnnotations()(dict(seg_map_path=str(path), seg_fields=[], reduce_zero_label=False, **info))


@pytest.fixture
def folder(tmp_path):
    """Nine images and masks, 0 to 8: the data root."""
    for kind in ('images', 'masks'):
        (tmp_path / 'set' / kind).mkdir(parents=True)
    for i in range(9):
        Image.new('RGB', (60, 40)).save(tmp_path / f'set/images/{i}.jpg')
        grey(disc()).save(tmp_path / f'set/masks/{i}_segmentation.png')
    return tmp_path / 'set'


def settings(folder, **more):
    prefix = dict(img_path='images', seg_map_path='masks')
    return dict(
        type='mmtr.BinaryDataset',
        data_root=str(folder),
        data_prefix=prefix,
        seg_map_suffix='_segmentation.png',
        pipeline=[LOAD],
        **more,
    )


def check(dataset):
    data_check.check_data(
        Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset))), ['train_dataloader']
    )


def test_both_are_known_by_name():
    assert DATASETS.get('mmtr.BinaryDataset') is BinaryDataset
    assert TRANSFORMS.get('mmtr.LoadBinaryAnnotations') is LoadBinaryAnnotations


@pytest.mark.parametrize(
    'suffix, convert',
    [
        ('.png', grey),
        ('.png', lambda mask: grey(mask).convert('1')),
        ('.png', lambda mask: grey(mask).convert('RGBA')),
        ('.png', lambda mask: grey(mask).convert('P')),
        ('.bmp', grey),
        ('.jpg', lambda mask: grey(mask).convert('RGB')),
    ],
    ids=['grey', '1 bit', 'RGBA', 'palette', 'BMP', 'JPEG'],
)
def test_masks_in_any_image_format_are_labels_0_and_1(tmp_path, suffix, convert):
    convert(disc()).save(tmp_path / f'mask{suffix}')
    results = load(tmp_path / f'mask{suffix}')
    assert results['gt_seg_map'].dtype == np.uint8 and results['seg_fields'] == ['gt_seg_map']
    np.testing.assert_array_equal(results['gt_seg_map'], disc().astype(np.uint8))


@pytest.mark.parametrize('value', [0, 255])
def test_a_mask_without_foreground_or_background_is_binary(tmp_path, value):
    Image.new('L', (6, 4), value).save(tmp_path / 'mask.png')
    np.testing.assert_array_equal(load(tmp_path / 'mask.png')['gt_seg_map'], np.full((4, 6), value // 255))


def test_grey_borders_are_cut_in_the_middle(tmp_path):
    mask = np.uint8([[0, 0, 0, 100, 127, 128, 200, 255, 255, 255]] + 3 * [[0] * 5 + [255] * 5])
    Image.fromarray(mask).save(tmp_path / 'mask.png')
    np.testing.assert_array_equal(load(tmp_path / 'mask.png')['gt_seg_map'], 4 * [5 * [0] + 5 * [1]])


@pytest.mark.parametrize(
    'mask, values, what',
    [
        (disc(), '0, 1', 'none above 127'),
        (np.arange(40)[:, None] // 4 + np.zeros(60), '0, 1, 2, 3, ..., 7, 8, 9', 'none above 127'),
        (np.where(disc(), 255, np.arange(60) // 15), '0, 1, 2, 3, 255', '55% of it is neither 0 nor 255'),
        (np.linspace(0, 255, 2400).reshape(40, 60), '0, 1, 2, 3, ..., 253, 254, 255', '100% of it is neither'),
    ],
    ids=['0 and 1', 'classes', 'classes and ignored', 'grey'],
)
def test_what_is_no_mask_is_refused_with_its_name_and_values(tmp_path, mask, values, what):
    path = tmp_path / 'wrong.png'
    Image.fromarray(mask.astype(np.uint8)).save(path)
    with pytest.raises(UserError) as raised:
        load(path)
    said = str(raised.value)
    assert said.startswith(f"The mask '{path}' is not binary, it has the values {values}, {what}")
    assert 'a mask is 0 for background and 255 for foreground' in said and 'foreground=[1]' in said


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / 'wrong.png').write_bytes(content)
    with pytest.raises(UserError, match=r"The mask '\S*/wrong\.png' cannot be read as an image"):
        load(tmp_path / 'wrong.png')


def test_labels_of_a_label_map_become_foreground_and_255_stays_ignored(tmp_path):
    Image.fromarray(np.uint8([[0, 8, 3], [255, 8, 1]])).save(tmp_path / 'map.png')
    np.testing.assert_array_equal(load(tmp_path / 'map.png', foreground=[8])['gt_seg_map'], [[0, 1, 0], [255, 1, 0]])
    np.testing.assert_array_equal(load(tmp_path / 'map.png', foreground=[0, 3])['gt_seg_map'], [[1, 0, 1], [255, 0, 0]])


@pytest.mark.slow
def test_data_set_finds_pairs_and_passes_the_foreground_on(folder):
    dataset = DATASETS.build(settings(folder))
    assert dataset.metainfo['classes'] == ('background', 'foreground') and len(dataset) == 9
    assert dataset.get_data_info(3)['seg_map_path'] == str(folder / 'masks/3_segmentation.png')
    np.testing.assert_array_equal(dataset[3]['gt_seg_map'], disc())
    (folder / 'test.txt').write_text('7\n2\n')
    dataset = DATASETS.build(settings(folder, ann_file='test.txt', foreground=[0]))
    assert [item['img_path'][-5:] for item in dataset] == ['7.jpg', '2.jpg']
    np.testing.assert_array_equal(dataset[0]['gt_seg_map'], np.where(disc(), 255, 1))


def test_loading_masks_as_label_maps_is_refused(folder):
    with pytest.raises(UserError, match="mmtr.LoadBinaryAnnotations', not 'LoadAnnotations'"):
        DATASETS.build({**settings(folder), 'pipeline': [dict(type='LoadAnnotations')]})


def test_a_sample_of_the_masks_is_looked_into_before_a_run(folder, monkeypatch):
    check(settings(folder))
    for i, label in enumerate([1, 255, 1, 255, 1, 255, 1, 255, 1]):
        Image.fromarray(label * disc().astype(np.uint8)).save(folder / f'masks/{i}_segmentation.png')
    with pytest.raises(UserError, match=r'0_segmentation\.png.* is not binary, it has the values 0, 1'):
        check(settings(folder))
    check(settings(folder, foreground=[1]))
    loaded = []
    monkeypatch.setattr(data_check.LoadBinaryAnnotations, '__call__', lambda self, pair: loaded.append(pair))
    check(settings(folder))
    assert 1 < len(loaded) <= data_check.SAMPLE
    monkeypatch.setattr(data_check, 'SAMPLE', 100)
    check(settings(folder))
    assert len(loaded) == 5 + 9


def test_without_masks_to_read_none_is_looked_into(folder):
    Image.fromarray(disc().astype(np.uint8)).save(folder / 'masks/0_segmentation.png')
    check({**settings(folder), 'pipeline': [dict(type='LoadImageFromFile')]})


@pytest.mark.slow
def test_a_mask_found_by_a_worker_is_still_one_sentence(folder):
    Image.fromarray(disc().astype(np.uint8)).save(folder / 'masks/4_segmentation.png')
    loader = DataLoader(DATASETS.build(settings(folder)), num_workers=1, batch_size=None)
    with pytest.raises(UserError) as raised:
        list(loader)
    assert '\n' not in str(raised.value) and str(raised.value).startswith("The mask '")
    assert '4_segmentation.png' in str(raised.value)
