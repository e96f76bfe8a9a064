"""What may be in a checkpoint file, and what is said about one that cannot be read."""
import functools
import http.server
import os
import pickle
import threading
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

from mmtr.engine.checkpoint import read_checkpoint
from mmtr.errors import UserError


class Payload:
    """Unpickling it calls ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def sentinel(tmp_path):
    """Path of a file that a payload would create; it must not be there after the test."""
    path = tmp_path / 'executed'
    yield str(path)
    assert not path.exists()


@pytest.fixture
def trained(tiny_segmenter, make_runner, tmp_path):
    """A runner that has trained and written checkpoints, with all that mmengine puts into them."""
    tiny_segmenter.custom_hooks = [dict(type='EMAHook')]
    tiny_segmenter.param_scheduler.append(
        dict(type='OneCycleLR', eta_max=1e-3, total_steps=4, by_epoch=False))
    tiny_segmenter.train_cfg.update(max_iters=2)
    runner = make_runner(tiny_segmenter)
    runner.train()
    return runner, tmp_path / 'work' / 'iter_2.pth'


def rename_numpy(path, core):
    """Rewrite a checkpoint as the numpy whose internals are in ``numpy.<core>`` would have written it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            if name.endswith('data.pkl'):
                data = data.replace(b'numpy._core.', b'numpy.core.').replace(
                    b'numpy.core.', f'numpy.{core}.'.encode())
                assert f'numpy.{core}.multiarray'.encode() in data
            archive.writestr(name, data)


@pytest.mark.parametrize('core', ['core', '_core'])
def test_a_checkpoint_that_mmengine_wrote_is_read_under_either_numpy(trained, core):
    runner, path = trained
    rename_numpy(path, core)
    checkpoint = CheckpointLoader.load_checkpoint(str(path))

    losses = checkpoint['message_hub']['log_scalars']['train/loss']
    expected = runner.message_hub.get_scalar('train/loss')
    np.testing.assert_array_equal(losses._log_history, expected._log_history)
    assert losses.mean() == expected.mean()
    best = checkpoint['message_hub']['runtime_info']['best_score']
    assert best == runner.message_hub.get_info('best_score')
    assert {'ema_state_dict', 'optimizer', 'param_schedulers'} <= set(checkpoint)
    assert checkpoint['param_schedulers'][2]['anneal_func'](0., 1., 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize('options', [{}, {'_use_new_zipfile_serialization': False}], ids=['zip', 'legacy'])
@pytest.mark.parametrize('function, named', [(os.system, 'system'), (open, 'open'), (exec, 'exec')])
def test_a_file_with_code_is_refused_by_name_and_not_run(tmp_path, sentinel, function, named, options):
    argument = {os.system: f'touch {sentinel}', open: sentinel, exec: f'open({sentinel!r}, "w")'}[function]
    args = (argument, 'w') if function is open else (argument,)
    torch.save({'state_dict': {}, 'meta': Payload(function, *args)}, tmp_path / 'evil.pth', **options)
    with pytest.raises(UserError, match=rf"evil\.pth' is refused.*'\S*{named}'"):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))


def test_a_plain_pickle_is_not_run(tmp_path, sentinel):
    (tmp_path / 'evil.pth').write_bytes(pickle.dumps(Payload(open, sentinel, 'w')))
    with pytest.raises(UserError, match='no checkpoint'):
        read_checkpoint(tmp_path / 'evil.pth')


@pytest.mark.parametrize('owner, name', [(HistoryBuffer, '__init__'), (np.dtype, 'type'), ([], 'append')])
def test_getattr_reaches_nothing_but_the_statistics_of_a_log(tmp_path, owner, name):
    torch.save({'meta': Payload(getattr, owner, name)}, tmp_path / 'evil.pth')
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / 'evil.pth')


@pytest.mark.parametrize('options', [{}, {'_use_new_zipfile_serialization': False}], ids=['zip', 'legacy'])
@pytest.mark.parametrize('kept', [0., 0.1, 0.9])
def test_a_truncated_file_is_called_corrupt(tmp_path, options, kept):
    path = tmp_path / 'half.pth'
    torch.save({'state_dict': {'weight': torch.ones(1000)}}, path, **options)
    path.write_bytes(path.read_bytes()[:int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"half\.pth' \(\d+ bytes\) cannot be read, it is corrupt"):
        CheckpointLoader.load_checkpoint(str(path))


def test_what_is_no_checkpoint_is_said_in_words(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    for name, words in [('gone.pth', 'is not there'), ('.', 'is a folder'), ('page.pth', 'no checkpoint'),
                        ('list.pth', 'holds a list')]:
        with pytest.raises(UserError, match=words):
            CheckpointLoader.load_checkpoint(str(tmp_path / name))
    with pytest.raises(UserError, match='open-mmlab://nothing'):
        CheckpointLoader.load_checkpoint('open-mmlab://nothing')


def test_safetensors_are_read(tmp_path):
    weights = {'a.weight': torch.randn(3, 2), 'a.bias': torch.randn(3)}
    save_file(weights, tmp_path / 'w.safetensors')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.safetensors'), map_location='cpu')
    assert loaded.keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(loaded[name], weights[name], rtol=0, atol=0)

    (tmp_path / 'half.safetensors').write_bytes((tmp_path / 'w.safetensors').read_bytes()[:-9])
    with pytest.raises(UserError, match='corrupt'):
        read_checkpoint(tmp_path / 'half.safetensors')


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL at which the folder ``tmp_path / 'www'`` is served."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    (tmp_path / 'www').mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / 'www')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_a_download_is_read_as_data_only(tmp_path, server, sentinel):
    torch.save({'state_dict': {'w': torch.arange(4.)}}, tmp_path / 'www' / 'good.pth')
    torch.save({'meta': Payload(open, sentinel, 'w')}, tmp_path / 'www' / 'evil.pth')
    loaded = CheckpointLoader.load_checkpoint(f'{server}/good.pth?download=true', map_location='cpu')
    assert loaded['state_dict']['w'].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match='refused'):
        CheckpointLoader.load_checkpoint(f'{server}/evil.pth')
    with pytest.raises(UserError, match='could not be downloaded: HTTP Error 404'):
        CheckpointLoader.load_checkpoint(f'{server}/gone.pth')
