import runpy
import sys
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmengine.config import Config

from mmtr.export import onnx as export
from mmtr.inference.model import build_model
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
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'export.py',
                *map(str, [tmp_path / 'tiny.py', tmp_path / 'tiny.pth', '--out', tmp_path / 'a.onnx', *args]),
            ],
        )
        runpy.run_path(str(TOOLS / 'export.py'), run_name='__main__')

    return run


@pytest.mark.slow
def test_a_file_that_passes_is_written(run, tmp_path, capsys):
    run('--repeats', 1)
    out = capsys.readouterr().out
    assert '3 images' in out and 'batches of 1:' in out and 'batches of 3:' in out and 'ms/image: PyTorch' in out
    assert 'image (batch, 3, 64, 64) uint8' in out
    assert (tmp_path / 'a.onnx').is_file() and not (tmp_path / 'a.onnx.part').exists()


def test_a_file_that_fails_is_not(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, 'export_onnx', lambda model, path, shape: path.write_text('wrong'))
    monkeypatch.setattr(export, 'session', lambda path: SimpleNamespace(run=None))
    monkeypatch.setattr(export, 'compare_with_onnx', lambda *args: [export.Difference(3, 0.1, 1e-6, 1.0)])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2 and 'in batches of 3: the largest difference' in capsys.readouterr().err
    assert not list(tmp_path.glob('a.onnx*'))


@pytest.mark.parametrize('count, words', [(1, 'An image and its mirror image,'), (6, '6 images,')])
def test_images_are_given_by_folder_and_one_is_checked_beside_its_mirror_image(
    run, drawn_data, monkeypatch, capsys, count, words
):
    seen = []
    monkeypatch.setattr(export, 'export_onnx', lambda model, path, shape: path.write_text('as if'))
    monkeypatch.setattr(export, 'session', lambda path: SimpleNamespace(run=None))
    monkeypatch.setattr(export, 'compare_with_onnx', lambda model, run, images: seen.extend(images) or [])
    folder = drawn_data / 'images/validation'
    for path in sorted(folder.iterdir())[count:]:
        path.unlink()
    run('--images', folder, '--repeats', 0)
    assert words in capsys.readouterr().out and len(seen) == max(count, 2)
    if count == 1:
        assert torch.equal(seen[1], seen[0].flip(-1))


@pytest.mark.parametrize('name, words', [('gone.png', 'is not there or is no image'), ('.', 'holds no image')])
def test_images_that_are_not_there_are_said(run, tmp_path, capsys, name, words):
    with pytest.raises(SystemExit) as stop:
        run('--images', tmp_path / name)
    assert stop.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_four_channels_is_exported_and_told_of_images_of_three(run, tmp_path, drawn_data, capsys):
    channels = (
        'model.backbone.in_channels=4',
        'model.data_preprocessor.mean=[9,9,9,9]',
        ('model.data_preprocessor.std=[64,64,64,64]'),
    )
    cfg = Config.fromfile(tmp_path / 'tiny.py')
    cfg.merge_from_dict({'model.backbone.in_channels': 4})
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'tiny.pth')
    with pytest.raises(SystemExit) as stop:
        run('--images', drawn_data / 'images/validation', '--cfg-options', *channels)
    assert stop.value.code == 2 and 'has 3 channels, but the model takes images of 4' in capsys.readouterr().err
    folder = tmp_path / 'four'
    folder.mkdir()
    for i, path in enumerate(sorted(drawn_data.glob('images/validation/*'))[:2]):
        cv2.imwrite(str(folder / f'{i}.png'), cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2BGRA))
    run('--images', folder, '--repeats', 0, '--cfg-options', *channels)
    assert 'image (batch, 4, 64, 64) uint8' in capsys.readouterr().out
