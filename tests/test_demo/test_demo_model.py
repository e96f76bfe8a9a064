"""The shipped model on drawn scenes, through the real tools."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch

from tests.conftest import draw_scenes

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / 'demo/segmenter_vit_demo.pth'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Twelve validation scenes, as demo/draw_scenes.py draws them."""
    return draw_scenes(tmp_path_factory.mktemp('drawn'), 12)


def run(script, *args):
    """Run a script of the repository in this process."""
    argv, path = sys.argv, sys.path[:]
    sys.argv = [script, *map(str, args)]
    sys.path.insert(0, str((ROOT / script).parent))
    try:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    finally:
        sys.argv, sys.path[:] = argv, path


def metrics_of(config, scenes, work_dir, *options):
    """Metrics that tools/test.py writes."""
    run(
        'tools/test.py',
        ROOT / 'configs' / config,
        CHECKPOINT,
        '--work-dir',
        work_dir,
        '--cfg-options',
        f'test_dataloader.dataset.data_root={scenes}',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        *options,
    )
    return json.loads(next(work_dir.glob('*/*.json')).read_text())


@pytest.mark.slow
def test_plain_and_reduced_reach_a_useful_accuracy(scenes, tmp_path):
    plain = metrics_of('segmenter_vit_demo.py', scenes, tmp_path / 'plain')
    reduced = metrics_of('segmenter_vit_tadapter_demo.py', scenes, tmp_path / 'reduced')
    assert plain['aAcc'] > 70 and plain['mIoU'] > 35
    assert plain['aAcc'] - 4 < reduced['aAcc'] != plain['aAcc']


def test_checkpoint_is_small_and_holds_nothing_but_weights_and_classes():
    assert CHECKPOINT.stat().st_size < 6e6
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    assert set(checkpoint) == {'state_dict', 'meta'} and set(checkpoint['meta']) == {'dataset_meta'}


@pytest.mark.slow
def test_demo_prints_one_table_and_writes_pictures(tmp_path, monkeypatch, capsys):
    # The whole demo on six scenes; it draws them below the root of the repository that it is told.
    sys.path.insert(0, str(ROOT / 'demo'))
    import run as demo

    sys.path.remove(str(ROOT / 'demo'))
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'run.py',
            '--scenes',
            '6',
            '--pictures',
            '1',
            '--out',
            str(tmp_path / 'out'),
            '--data',
            str(tmp_path / 'scenes'),
        ],
    )
    demo.main()
    printed = capsys.readouterr().out
    rows = {
        name: next(line for line in printed.splitlines() if line.startswith(name))
        for name in ('plain', 'Token Adapter, paper', 'Token Adapter, ours')
    }
    assert '1.00x' in rows['plain'] and [row.split('768 x')[1] for row in rows.values()] == [
        '10',
        '4, 374 x6',
        '2, 266 x8',
    ]  # 14 of 24 rows, 19 of 32 columns
    assert max(map(len, printed.splitlines())) <= 120
    picture = cv2.imread(str(tmp_path / 'out/scene_0.png'))
    assert picture.shape[0] > 500 and picture.std() > 10
