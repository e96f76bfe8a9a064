"""docs/own_data.md: its configs and commands, as they stand there, on drawn data, with a small model and few steps."""

import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import ManagerMixin

from mmtr.inference.model import build_model

from .conftest import TOOLS, subclasses
from .drawn_coco import draw_coco

PAGE = (TOOLS.parent / 'docs/own_data.md').read_text()
FENCE = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)  # novm
#: What a test has no time for.
SMALLER = {
    'size = (512, 512)': 'size = (64, 64)',
    'scale = (2048, 512)': 'scale = (96, 64)',
    '=(480, 480)': '=(48, 48)',
    'iterations = 4000': 'iterations = 2',
    'iterations = 10000': 'iterations = 2',
    'iter_4000': 'iter_2',
    'iter_10000': 'iter_2',
    '=500': '=2',
    '=1000': '=2',
    '=200': '=1',
    'interval=50': 'interval=1',
    'num_workers=2, persistent_workers=True': 'num_workers=0',
    'num_workers=1, persistent_workers=True': 'num_workers=0',
}
SEGMENTER = """
model['backbone'].update(embed_dims=32, num_layers=4, num_heads=2)
model['decode_head'].update(in_channels=32, channels=32, embed_dims=32, num_layers=1, num_heads=2)
"""
DETECTOR = """
model['backbone'].update(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=4,
                         token_reduction=dict(layers=(1, 2)))
model['panoptic_head'].update(
    in_channels=[16, 32, 64, 128], channels=64, num_queries=10,
    pixel_decoder=dict(num_layers=1, feedforward_channels=32),
    decoder=dict(num_layers=2, feedforward_channels=32), loss=dict(num_points=64))
model['data_preprocessor'] = dict(batch_augments=[dict(type='BatchFixedSizePad', size=(64, 64), pad_mask=True)])
for loader in (train_dataloader, val_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
small = dict(Resize=dict(scale=(64, 64)), RandomResize=dict(scale=(64, 64)), RandomCrop=dict(crop_size=(64, 64)))
for loader, pipeline in ((train_dataloader, _base_.train_dataloader.dataset.pipeline),
                         (val_dataloader, _base_.test_dataloader.dataset.pipeline)):
    loader['dataset']['pipeline'] = [{**step, **small.get(step['type'], {})} for step in pipeline]
default_hooks['logger'] = dict(interval=1)
"""


def smaller(text):
    """Text of the page, with the sizes and numbers of ``SMALLER``."""
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    return text


def blocks(heading):
    """The fenced blocks below a heading: (language, text) each."""
    below = re.split(rf'^#+ {heading}.*\n', PAGE, flags=re.MULTILINE)[1]
    return FENCE.findall(smaller(re.split('^##+ ', below, flags=re.MULTILINE)[0]))


def write_config(heading, name, more, **other_classes):
    """Write the config of a section, and the file that it starts from, of a model of other classes."""
    (text,) = [text for language, text in blocks(heading) if language == 'python']
    assert text.startswith(f'# {name}.py\n')
    Path(f'{name}.py').write_text(text + more)
    cfg = Config.fromfile(f'{name}.py')
    Path(cfg.load_from).parent.mkdir(exist_ok=True)
    cfg.merge_from_dict(other_classes)
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(cfg).state_dict(), meta={}), cfg.load_from)


def run(monkeypatch, heading):
    """Run the commands of a section that are ours, in this process; how many there were."""
    commands = [
        line
        for language, text in blocks(heading)
        if not language
        for line in text.splitlines()
        if line.startswith('python -m mmtr ')
    ]
    for command in commands:
        name, *args = shlex.split(command)[3:]
        for kind in subclasses(ManagerMixin):  # a process has one visualizer of a name
            kind._instance_dict.clear()
        monkeypatch.setattr(sys, 'argv', [name, *args])
        try:
            runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:
            assert not stop.code, command
    return len(commands)


def draw(monkeypatch, tmp_path):
    """Six drawn images in the folders of both sections, which are of two or three kinds of things."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    for split, seed in (('train', 0), ('val', 1)):
        root = draw_coco(tmp_path / split, counts=(1, 2, 3), seed=seed)
        for folder in ('mine', 'things'):
            (tmp_path / 'data' / folder / 'images').mkdir(parents=True, exist_ok=True)
            (tmp_path / 'data' / folder / 'images' / split).symlink_to(root / 'images')
        (tmp_path / 'data/things' / f'{split}.json').symlink_to(root / 'instances.json')
        (tmp_path / 'data/mine/labels').mkdir(exist_ok=True)
        (tmp_path / 'data/mine/labels' / split).symlink_to(root / 'semantic')


@pytest.mark.slow
def test_segmentation(tmp_path, monkeypatch, capsys):
    draw(monkeypatch, tmp_path)
    write_config('Segmentation', 'my_segmenter', SEGMENTER, **{'model.decode_head.num_classes': 150})
    assert run(monkeypatch, 'Segmentation') == 5
    said = capsys.readouterr()
    assert 'size mismatch' in said.out + said.err
    work = tmp_path / 'work_dirs'
    pictures = {path.name for path in work.glob('my_segmenter/*/vis_data/vis_image/*')}
    assert any('tokens' in name for name in pictures) and any('tokens' not in name for name in pictures)
    assert len(list((work / 'painted').rglob('test_[0-9]*.png'))) == len(list((work / 'labels').glob('*.png'))) == 3
    assert len(list((work / 'predictions').glob('*.jpg'))) == 3 and (work / 'compared.png').exists()


@pytest.mark.slow
def test_objects(tmp_path, monkeypatch):
    pytest.importorskip('mmcv._ext', reason='boxes are joined by an operator of mmcv')
    draw(monkeypatch, tmp_path)
    write_config('Objects', 'my_detector', DETECTOR, **{'model.panoptic_head.num_things_classes': 80})
    assert run(monkeypatch, 'Objects') == 4
    work = tmp_path / 'work_dirs'
    assert any('tokens' in path.name for path in work.glob('my_detector/*/vis_data/vis_image/*'))
    assert (work / 'found.segm.json').exists() and list((work / 'painted').rglob('*.jpg'))
    # mmdet's tools, as a shell runs them.
    (language, script), *_ = blocks("mmdet's analysis tools")
    left_out = ['coco_error_analysis']  # draws for a minute
    left_out += [] if find_spec('seaborn') else ['analyze_logs']
    script = '\n'.join(line for line in script.splitlines() if not any(name in line for name in left_out))
    script = script.replace('python ', f'{sys.executable} ')
    done = subprocess.run(['bash', '-e', '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {'augmented', 'best_and_worst', 'confusion'} <= {path.name for path in work.iterdir()}
    assert (work / 'loss.png').exists() == bool(find_spec('seaborn'))
    assert (work / 'best_and_worst/good').is_dir()
