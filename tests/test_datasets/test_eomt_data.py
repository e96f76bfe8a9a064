"""The data of EoMT's configs: the pipelines of training and test, run on small drawn images."""

import mmdet.datasets  # noqa: F401
import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from tests.config_files import ROOT, read
from tests.conftest import draw_data
from tests.drawn_coco import METAINFO, PANOPTIC, SIZE, draw_coco

NAMES = sorted(path.stem for path in (ROOT / 'configs/_base_/eomt').glob('*-*.py'))
STEPS = dict(coco=88692, ade20k=39120, cityscapes=19902)
DETECTION = [name for name in NAMES if 'semantic' not in name and '1280' not in name]


def pipeline_of(cfg, size, ratio=None, part='train'):
    """A pipeline of a config for squares of ``size``; ``ratio``: with this jitter, and otherwise as the image is."""
    size = (size, size)
    changed = dict(RandomResize=dict(scale=size), RandomCrop=dict(crop_size=size), Pad=dict(size=size))
    changed['Resize'] = dict(scale=size)
    if ratio:
        changed['RandomResize']['ratio_range'], changed['RandomFlip'] = (ratio, ratio), dict(prob=0.0)
    steps = cfg[f'{part}_dataloader'].dataset.pipeline
    steps = [step for step in steps if ratio is None or 'PhotoMetric' not in step.type]
    return [{k: v for k, v in {**s, **changed.get(s.type, {})}.items() if k != '_scope_'} for s in steps]


def data_of(name, root, size, ratio=None, part='train'):
    """The drawn data set, loaded as the base config ``name`` says."""
    cfg = read(f'_base_/eomt/{name}.py')
    dataset = dict(type=f'mmdet.{cfg[f"{part}_dataloader"].dataset.type}', test_mode=part == 'test')
    if 'instance' in name:
        dataset |= dict(ann_file='instances.json', metainfo=METAINFO, data_prefix=dict(img='images/'))
    else:
        dataset |= dict(ann_file='panoptic.json', metainfo=PANOPTIC, data_prefix=dict(img='images/', seg='panoptic/'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        return DATASETS.build(dict(**dataset, data_root=str(root), pipeline=pipeline_of(cfg, size, ratio, part)))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return draw_coco(tmp_path_factory.mktemp('coco'))


@pytest.mark.parametrize('name', NAMES)
def test_steps_and_sizes(name):
    cfg = read(f'_base_/eomt/{name}.py')
    side = 1280 if '1280' in name else dict(ade20k=512, cityscapes=1024)[name[:-9]] if 'semantic' in name else 640
    assert cfg.train_cfg.max_iters == STEPS[name.split('-')[0]]
    assert tuple(cfg.eomt.backbone.img_size) == (side, side)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(steps['RandomResize'].scale) == tuple(steps['RandomCrop'].crop_size) == (side, side)
    assert steps['RandomResize'].ratio_range == ((0.5, 2.0) if 'semantic' in name else (0.1, 2.0))
    assert ('coco' in name) != any('PhotoMetricDistortion' in step for step in steps)
    if 'semantic' in name:
        assert {side} == {*cfg.eomt.test_cfg.crop_size, *cfg.eomt.test_cfg.stride, *steps['Pad'].size}
    else:
        test = {step.type: step for step in cfg.test_dataloader.dataset.pipeline}
        assert cfg.eomt.data_preprocessor.pad_size_divisor == side == test['Resize'].scale[0] == test['Resize'].scale[1]


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTION)
def test_images_are_made_smaller_as_pillow_does(name, root):
    """Both in training and in tests: 64 pixels to 32."""
    for part in ('train', 'test'):
        item = data_of(name, root, 32 if part == 'test' else 64, 0.5, part)[1]
        path = item['data_samples'].img_path
        expected = np.asarray(Image.open(path).resize((32, 32), Image.BILINEAR))[..., ::-1]
        assert (item['inputs'].permute(1, 2, 0).numpy() == expected).all()
        if part == 'train' and 'panoptic' in name:
            labels = np.asarray(Image.open(root / 'semantic' / path.split('/')[-1].replace('jpg', 'png')))
            found = item['data_samples'].gt_sem_seg.sem_seg[0].numpy()
            assert found.shape == (32, 32) and (found == labels[::2, ::2]).mean() > 0.9


@pytest.mark.parametrize('name', DETECTION)
def test_things_are_whole_or_cropped_and_crowds_are_no_targets(name, root):
    data = data_of(name, root, 40)
    for index in [*range(len(data))] * 4:
        item = data[index]
        sample = item['data_samples']
        things, shape = sample.gt_instances, tuple(item['inputs'].shape[1:])
        assert max(shape) <= 40 and things.masks.masks.shape[1:] == shape
        assert all(mask.any() for mask in things.masks.masks)
        if 'instance' in name:
            assert len(things) and not any(mask.mean() > 0.9 for mask in things.masks.masks)
        else:
            assert sample.gt_sem_seg.sem_seg.shape[1:] == shape and sample.gt_sem_seg.sem_seg.max() < 4
            # Each thing is where its class is.
            for mask, label in zip(things.masks.masks, things.labels):
                assert (sample.gt_sem_seg.sem_seg[0].numpy()[mask > 0] == int(label)).all()


def test_the_crowd_over_an_image_is_ignored_and_one_pixel_is_a_thing(root):
    data = data_of('coco-instance', root, SIZE, 1.0)
    sample = data[len(data) - 1]['data_samples']
    assert len(sample.ignored_instances) == 1
    assert sorted(int(mask.sum()) for mask in sample.gt_instances.masks.masks)[0] == 1


def test_small_images_of_semantic_models_are_filled_up_with_black(tmp_path):
    draw_data(tmp_path, images=1)
    cfg = read('_base_/eomt/ade20k-semantic.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        data = DATASETS.build(
            dict(
                type='BaseSegDataset',
                data_root=str(tmp_path),
                img_suffix='.png',
                metainfo=dict(classes=('a', 'b', 'c', 'd')),
                reduce_zero_label=True,
                data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
                pipeline=[
                    {**step, 'reduce_zero_label': None} if step['type'] == 'LoadAnnotations' else step
                    for step in pipeline_of(cfg, 128, 0.5)
                ],
            )
        )
    item = data[0]
    image, labels = item['inputs'].numpy(), item['data_samples'].gt_sem_seg.data[0].numpy()
    assert image.shape == (3, 128, 128) and labels.shape == (128, 128)
    assert not image[:, 64:].any() and not image[:, :, 64:].any() and image[:, :64, :64].any()
    assert (labels[64:] == 255).all() and (labels[:, 64:] == 255).all() and (labels[:64, :64] != 255).any()
