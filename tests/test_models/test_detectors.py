"""The configs of detectors, made small, from drawn boxes to a trained and tested model."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

CONFIGS = Path(__file__).parents[2] / 'configs'
SIZE = 128


@pytest.fixture
def drawn_boxes(tmp_path):
    """Folder with four noisy images of bright boxes, and their annotations as COCO has them."""
    rng = np.random.default_rng(0)
    root = tmp_path / 'coco'
    (root / 'images').mkdir(parents=True)
    images, boxes = [], []
    for i in range(4):
        pixels = rng.integers(0, 90, (SIZE, SIZE, 3))
        for _ in range(i):  # none in the first
            left, top, width, height = (int(n) for n in (*rng.integers(0, 60, 2), *rng.integers(20, 60, 2)))
            pixels[top : top + height, left : left + width] += 120
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            boxes.append(
                dict(
                    id=len(boxes) + 1,
                    image_id=i,
                    category_id=i % 2 + 1,
                    bbox=[left, top, width, height],
                    area=width * height,
                    iscrowd=0,
                    segmentation=[corners],
                )
            )
        Image.fromarray(pixels.astype(np.uint8)).save(root / 'images' / f'{i}.png')
        images.append(dict(id=i, file_name=f'{i}.png', width=SIZE, height=SIZE))
    categories = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
    (root / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


def small(root, work_dir):
    """Command line settings that make the COCO configs small enough for a test; all layers stay.

    In float32: mmcv's NMS knows no bfloat16 on a CPU.
    """
    size = f'({SIZE},{SIZE})'
    options = {
        'work_dir': work_dir,
        'model.data_preprocessor.pad_size_divisor': SIZE,
        'model.backbone.img_size': size,
        'model.backbone.embed_dims': 32,
        'model.backbone.num_heads': 2,
        'model.backbone.window_size': 4,
        'model.neck.in_channels': 32,
        'model.train_cfg.rpn_proposal.max_per_img': 20,
        'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5,
        # Images as they are: no anchor lies inside one that is scaled down to a tenth.
        'train_dataloader.dataset.pipeline.2.ratio_range': '(1.0,1.0)',
        'train_dataloader.dataset.pipeline.2.scale': size,
        'train_dataloader.dataset.pipeline.3.crop_size': size,
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        'optim_wrapper.type': 'OptimWrapper',
        'visualizer.name': work_dir,
    }  # mmengine keeps one for each name, with the folder that it had first
    for stage in range(3):
        options[f'model.train_cfg.rcnn.{stage}.sampler.num'] = 16
    for loader in ('train', 'val', 'test'):
        data = f'{loader}_dataloader.dataset'
        options |= {
            f'{data}.data_root': root,
            f'{data}.ann_file': 'boxes.json',
            f'{data}.data_prefix.img': 'images/',
            f'{loader}_dataloader.num_workers': 0,
            f'{loader}_dataloader.persistent_workers': False,
        }
        if loader != 'train':
            options |= {f'{data}.pipeline.1.scale': size, f'{loader}_evaluator.ann_file': root / 'boxes.json'}
    return [f'{key}={value}' for key, value in options.items()]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['eva02-l', 'eva02-l_cropr', 'vitdet-b_tadapter'])
def test_config_trains_and_tests(name, drawn_boxes, tmp_path, tool):
    options = small(drawn_boxes, tmp_path / 'work')
    config = CONFIGS / f'cascade-mask-rcnn_{name}_coco.py'
    status, said = tool('train', config, '--cfg-options', *options)
    assert status == 0, said
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json'))
    *steps, tested = (json.loads(line) for line in scalars.read_text().splitlines())
    assert [step['iter'] for step in steps] == [1, 2]
    for step in steps:
        losses = {key: value for key, value in step.items() if 'loss' in key}
        assert all(np.isfinite(value) for value in losses.values())
        assert {'loss_rpn_cls', 's0.loss_cls', 's2.loss_mask'} <= losses.keys()
        assert [key for key in losses if key.startswith('reducer')] == [
            f'reducer.layer_{layer:02}.loss_bce' for layer in (5, 8, 11, 14, 20) if 'cropr' in name
        ]
    assert 0 <= tested['coco/segm_mAP'] <= 1
    options.remove(f'work_dir={tmp_path / "work"}')
    status, said = tool(
        'test', config, tmp_path / 'work' / 'iter_2.pth', '--cfg-options', f'work_dir={tmp_path / "test"}', *options
    )
    assert status == 0, said
    again = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    assert again['coco/bbox_mAP'] == tested['coco/bbox_mAP']


def test_classes_of_the_auxiliary_heads_must_be_those_of_the_detector(drawn_boxes, tmp_path, tool):
    status, said = tool(
        'train',
        CONFIGS / 'cascade-mask-rcnn_eva02-l_cropr_coco.py',
        '--cfg-options',
        *small(drawn_boxes, tmp_path / 'work'),
        'model.backbone.token_reduction.num_classes=2',
    )
    assert status == 2 and said.count('\n') == 1
    assert 'token_reduction.num_classes=2, but the model has 80 classes: set num_classes=80' in said
