import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from mmtr.engine import export
from mmtr.engine.model import build_model
from tests.conftest import TOOLS

pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
if torch.__version__ < (2, 6):
    pytest.skip('torch 2.6 exports to ONNX', allow_module_level=True)


@pytest.fixture
def run(tiny_segmenter, tmp_path, monkeypatch):
    """Function that runs tools/export.py on a tiny Segmenter, writing a.onnx into ``tmp_path``."""
    tiny_segmenter.model.backbone.type = 'mmtr.VisionTransformer'
    tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
    torch.save(dict(state_dict=build_model(tiny_segmenter).state_dict()), tmp_path / 'tiny.pth')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, [
            tmp_path / 'tiny.py', tmp_path / 'tiny.pth', '--out', tmp_path / 'a.onnx', *args])])
        runpy.run_path(str(TOOLS / 'export.py'), run_name='__main__')
    return run


def test_a_file_that_passes_is_written(run, tmp_path, capsys):
    run('--repeats', 1)
    out = capsys.readouterr().out
    assert '3 images' in out and 'batches of 1:' in out and 'batches of 3:' in out and 'ms/image: PyTorch' in out
    assert 'image (batch, 3, 64, 64) uint8' in out
    assert (tmp_path / 'a.onnx').is_file() and not (tmp_path / 'a.onnx.part').exists()


def test_a_file_that_fails_is_not(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, 'export_onnx', lambda model, path, shape: path.write_text('wrong'))
    monkeypatch.setattr(export, 'session', lambda path: SimpleNamespace(run=None))
    monkeypatch.setattr(export, 'compare_with_onnx', lambda *args: [export.Difference(3, 0.1, 1e-6, 1.)])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2 and 'in batches of 3: the largest difference' in capsys.readouterr().err
    assert not list(tmp_path.glob('a.onnx*'))


def test_one_image_is_no_batch(run, drawn_data, capsys):
    with pytest.raises(SystemExit) as stop:
        run('--images', next(drawn_data.glob('images/validation/*')))
    assert stop.value.code == 2 and 'a batch of two images or more' in capsys.readouterr().err
