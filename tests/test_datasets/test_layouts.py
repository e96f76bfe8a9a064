"""The configs of the binary tasks find data that are laid out as docs/datasets.md says."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image

from mmtr import UserError
from mmtr.checks.data import check_data

ROOT = Path(__file__).parents[2]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Task -> images of training and testing and their masks, below data/; epochs and warm-up.
LAYOUTS = {
    'duts': (
        [
            'DUTS/DUTS-TR/DUTS-TR-Image/a.jpg',
            'DUTS/DUTS-TR/DUTS-TR-Mask/a.png',
            'DUTS/DUTS-TE/DUTS-TE-Image/b.jpg',
            'DUTS/DUTS-TE/DUTS-TE-Mask/b.png',
        ],
        16,
        4,
    ),
    'cod': (
        [
            'COD/TrainDataset/Imgs/a.jpg',
            'COD/TrainDataset/GT/a.png',
            'COD/TestDataset/COD10K/Imgs/b.jpg',
            'COD/TestDataset/COD10K/GT/b.png',
        ],
        50,
        10,
    ),
    'cuhk': (['CUHK/image/a.jpg', 'CUHK/gt/a.png', 'CUHK/image/b.jpg', 'CUHK/gt/b.png'], 40, 10),
    'kvasir': (
        ['Kvasir-SEG/images/a.jpg', 'Kvasir-SEG/masks/a.jpg', 'Kvasir-SEG/images/b.jpg', 'Kvasir-SEG/masks/b.jpg'],
        40,
        10,
    ),
    'isic2017': (
        [
            'ISIC2017/ISIC-2017_Training_Data/a.jpg',
            'ISIC2017/ISIC-2017_Training_Part1_GroundTruth/a_segmentation.png',
            'ISIC2017/ISIC-2017_Test_v2_Data/b.jpg',
            'ISIC2017/ISIC-2017_Test_v2_Part1_GroundTruth/b_segmentation.png',
        ],
        20,
        5,
    ),
    'nuclei': (
        [
            'dsb2018_nuclei/images/train/a.jpg',
            'dsb2018_nuclei_masks/train/a.png',
            'dsb2018_nuclei/images/val/b.jpg',
            'dsb2018_nuclei_masks/val/b.png',
        ],
        40,
        10,
    ),
    'vehicles': (
        [
            'camvid/img_dir/train/a.jpg',
            'camvid/ann_dir/train/a.png',
            'camvid/img_dir/val/b.jpg',
            'camvid/ann_dir/val/b.png',
        ],
        40,
        10,
    ),
}
LISTS = {'cuhk': ('CUHK/train.txt', 'CUHK/test.txt'), 'kvasir': ('Kvasir-SEG/train.txt', 'Kvasir-SEG/val.txt')}


def read(task):
    small = task in ('nuclei', 'vehicles')
    return Config.fromfile(ROOT / f'configs/dinov2-{"ti" if small else "b"}_full_{task}.py')


@pytest.fixture(params=LAYOUTS)
def task(request, tmp_path, monkeypatch):
    """A task whose data are in the working directory: 700x400, the left half foreground."""
    monkeypatch.chdir(tmp_path)
    paths, *_ = LAYOUTS[request.param]
    labels = np.repeat(np.uint8([[8, 0]]), 350, 1).repeat(400, 0)
    mask = labels if request.param == 'vehicles' else np.where(labels, 255, 0).astype(np.uint8)
    for i, path in enumerate(paths):
        Path('data', path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask if i % 2 else mask[..., None].repeat(3, 2)).save(Path('data', path))
    for name, split in zip('ab', LISTS.get(request.param, ())):
        Path('data', split).write_text(f'{name}\n')
    return request.param


@pytest.mark.slow
def test_each_split_is_found_and_loaded(task):
    cfg = read(task)
    register_all_modules()
    check_data(cfg, LOADERS)
    size = cfg.model.backbone.img_size
    assert tuple(size) == tuple(cfg.crop_size) == tuple(cfg.model.data_preprocessor.size)
    assert all(n % cfg.model.backbone.patch_size == 0 for n in size)
    with DefaultScope.overwrite_default_scope('mmseg'):
        train, test = (DATASETS.build(cfg[loader].dataset) for loader in LOADERS[::2])
    assert [len(train), len(test)] == [1, 1]
    shown, label = train[0]['inputs'], train[0]['data_samples'].gt_sem_seg.data
    assert tuple(shown.shape[1:]) == tuple(label.shape[1:]) == tuple(size) and set(label.unique().tolist()) == {0, 1}
    tested = test[0]
    assert Path(tested['data_samples'].img_path).stem == 'b' and tuple(tested['inputs'].shape[1:]) == tuple(size)
    label = tested['data_samples'].gt_sem_seg.data
    assert tuple(label.shape) == (1, 400, 700) and label[0, :, :345].all() and not label[0, :, 355:].any()


def test_a_folder_that_is_not_there_is_named(task):
    image = Path('data', LAYOUTS[task][0][3])
    image.unlink()
    with pytest.raises(UserError, match=f"'data/.*{image.stem}"):
        check_data(read(task), LOADERS)


@pytest.mark.parametrize('task', LAYOUTS)
def test_epochs_are_the_papers(task):
    cfg, (_, epochs, warmup) = read(task), LAYOUTS[task]
    linear, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == cosine.end == epochs and linear.end == cosine.begin == warmup


@pytest.mark.parametrize('task', LAYOUTS)
def test_heads_have_one_channel_and_the_papers_losses(task):
    head = read(task).model.decode_head
    assert (head.num_classes, head.out_channels, head.threshold) == (2, 1, 0.5)
    assert [(loss.type, loss.loss_weight) for loss in head.loss_decode] == [
        ('CrossEntropyLoss', 1.0),
        ('mmtr.BinaryDiceLoss', 0.5),
    ]
