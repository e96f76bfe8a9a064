"""A binary task from files to measures through the tools, with the configs' losses, data set and metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MEASURES = {'Smeasure', 'wFmeasure', 'MAE', 'meanEm', 'adpEm', 'maxFm', 'adpFm', 'mIoU'}


@pytest.fixture
def data(tmp_path):
    """Twelve images of a bright rectangle, of two sizes, with its mask: the folder."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'masks'):
        (tmp_path / 'data' / kind).mkdir(parents=True)
    for i in range(12):
        mask = np.zeros((56, 84) if i % 2 else (70, 56), bool)
        y, x = rng.integers(0, 30, 2)
        mask[y : y + 26, x : x + 26] = True
        pixels = rng.integers(0, 90, (*mask.shape, 3)) + 150 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f'data/images/{i:02}.jpg')
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / f'data/masks/{i:02}.png')
    return tmp_path / 'data'


@pytest.fixture
def config(data, tmp_path):
    """Path of a config: that of the nuclei with four times four patches, one layer, and ``data``."""
    (tmp_path / 'tiny.py').write_text(f"""
_base_ = '{ROOT}/configs/dinov2-ti_full_nuclei.py'
size = (56, 56)
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(img_size=size, embed_dims=32, num_heads=2, num_layers=1),
    decode_head=dict(in_channels=32, channels=16))
shrunk = [[{{**step, **{{key: size for key in ('scale', 'crop_size') if key in step}}}} for step in pipeline]
          for pipeline in (_base_.train_pipeline, _base_.test_pipeline)]
files = dict(data_root='{data}', data_prefix=dict(img_path='images', seg_map_path='masks'))
train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(**files, pipeline=shrunk[0]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(**files, pipeline=shrunk[1]))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=12, val_interval=12)
param_scheduler = [{{**_base_.param_scheduler[0], 'end': 1}}, {{**_base_.param_scheduler[1], 'begin': 1, 'end': 12}}]
optim_wrapper = dict(optimizer=dict(lr=0.01))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=12))
randomness = dict(seed=0)
work_dir = '{tmp_path}/work'
""")
    return tmp_path / 'tiny.py'


def logged(folder):
    return [
        json.loads(line)
        for log in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]


@pytest.mark.slow
def test_training_lowers_the_loss_and_testing_prints_every_measure(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    losses = [line['loss'] for line in logged(tmp_path / 'work') if 'loss' in line]
    assert len(losses) == 36 and np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    parts = next(line for line in logged(tmp_path / 'work') if 'loss' in line)
    assert parts['loss'] == pytest.approx(parts['decode.loss_ce'] + parts['decode.loss_dice'], abs=1e-3)
    trained = next(line for line in logged(tmp_path / 'work') if 'MAE' in line)
    assert MEASURES <= trained.keys()

    status, _ = tool('test', config, tmp_path / 'work/epoch_12.pth', '--work-dir', tmp_path / 'tested')
    assert status == 0
    (log,) = (tmp_path / 'tested').glob('*/*.json')
    tested = json.loads(log.read_text())
    assert {name: tested[name] for name in MEASURES} == {name: trained[name] for name in MEASURES}
    assert tested['Smeasure'] > 0.6 and tested['MAE'] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize('which', [0, 5])  # in the sample before the run, and found by a worker
def test_a_mask_that_is_not_binary_stops_the_run_with_its_name(config, tool, data, tmp_path, which):
    path = data / f'masks/{which:02}.png'
    Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    status, said = tool('train', config)
    assert status == 2 and said.count('\n') == 1
    assert said.startswith(f"Error: The mask '{path}' is not binary, it has the values 0, 1, none above 127")
    assert which or not (tmp_path / 'work').exists()
