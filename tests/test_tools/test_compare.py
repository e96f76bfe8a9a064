import json
import runpy
import sys

import pytest
import torch

from mmtr.engine.model import build_model
from tests.conftest import TOOLS

REDUCTIONS = """
reductions = dict(
    nothing=dict(type='TokenAdapter', ratio=0.),
    half=dict(type='TokenAdapter', ratio=0.5, layers=(0, 2), merge='keep'))
"""


@pytest.fixture
def files(tiny_segmenter, tmp_path):
    """Config, checkpoint and reductions of a tiny mmtr Segmenter."""
    tiny_segmenter.model.backbone.type = 'mmtr.VisionTransformer'
    tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
    torch.manual_seed(0)
    model = build_model(tiny_segmenter)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # norms that shrink everything would leave one class everywhere
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    (tmp_path / 'reductions.py').write_text(REDUCTIONS)
    return [tmp_path / name for name in ('tiny.py', 'tiny.pth', 'reductions.py')]


def compare(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, args)])
    runpy.run_path(str(TOOLS / 'compare.py'), run_name='__main__')


def test_metrics_are_those_of_the_test_tool(files, tmp_path, monkeypatch, capsys):
    compare(monkeypatch, *files, '--out', tmp_path / 'out')
    results = json.loads((tmp_path / 'out.json').read_text())
    assert list(results) == ['plain', 'nothing', 'half']
    monkeypatch.setattr(sys, 'argv', ['test.py', str(files[0]), str(files[1]), '--work-dir', str(tmp_path / 'work')])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    tested = json.loads(next((tmp_path / 'work').glob('*/*.json')).read_text())
    assert results['plain']['metrics']['mIoU'] == pytest.approx(tested['mIoU'])
    assert results['nothing']['metrics'] == results['plain']['metrics'] != results['half']['metrics']
    assert '| half |' in (tmp_path / 'out.md').read_text() and '| half |' in capsys.readouterr().out


def test_what_is_no_reduction_is_said(files, monkeypatch, capsys):
    files[2].write_text('nothing = 1')
    with pytest.raises(SystemExit) as stop:
        compare(monkeypatch, *files)
    assert stop.value.code == 2
    assert 'must be a Python file with reductions = dict' in capsys.readouterr().err
