"""What may be in a checkpoint file, and what is never run or read."""

import contextlib
import functools
import http.server
import os
import pickle
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as stock
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

import mmtr.engine.loaders
import mmtr.weights.files
from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint

pytestmark = pytest.mark.usefixtures('loader')
HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'


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
    tiny_segmenter.param_scheduler.append(dict(type='OneCycleLR', eta_max=1e-3, total_steps=4, by_epoch=False))
    tiny_segmenter.train_cfg.update(max_iters=2)
    runner = make_runner(tiny_segmenter)
    runner.train()
    return runner, tmp_path / 'work' / 'iter_2.pth'


def rewrite(path, edit):
    """Replace the pickle in a file of ``torch.save`` by what ``edit`` makes of it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in members.items():
            archive.writestr(name, edit(data) if name.endswith('data.pkl') else data)


def rename_numpy(core, data):
    """A pickle as the numpy whose internals are in ``numpy.<core>`` would have written it."""
    data = data.replace(b'numpy._core.', b'numpy.core.').replace(b'numpy.core.', f'numpy.{core}.'.encode())
    assert f'numpy.{core}.multiarray'.encode() in data
    return data


@pytest.mark.slow
@pytest.mark.parametrize('core', ['core', '_core'])
def test_a_checkpoint_that_mmengine_wrote_is_read_under_either_numpy(trained, core):
    runner, path = trained
    rewrite(path, functools.partial(rename_numpy, core))
    checkpoint = CheckpointLoader.load_checkpoint(str(path))

    losses = checkpoint['message_hub']['log_scalars']['train/loss']
    expected = runner.message_hub.get_scalar('train/loss')
    np.testing.assert_array_equal(losses._log_history, expected._log_history)
    assert losses.mean() == expected.mean()
    best = checkpoint['message_hub']['runtime_info']['best_score']
    assert best == runner.message_hub.get_info('best_score')
    assert {'ema_state_dict', 'optimizer', 'param_schedulers'} <= set(checkpoint)
    assert checkpoint['param_schedulers'][2]['anneal_func'](0.0, 1.0, 0.5) == pytest.approx(0.5)


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


@pytest.mark.parametrize(
    'data',
    [
        pytest.param(HISTORY + b'N}X\4\0\0\0meanNs\x86b', id='sets an attribute of a class'),
        pytest.param(HISTORY + b'X\4\0\0\0meanNs', id='sets an item of a class'),
        pytest.param(b'(X\4\0\0\0exitcos\nsystem\no', id='OBJ'),
        pytest.param(b'(X\4\0\0\0exitios\nsystem\n', id='INST'),
        pytest.param(b'(' + HISTORY + b'o', id='OBJ of a class that is admitted'),
        pytest.param(b'X\2\0\0\0osX\6\0\0\0system\x93', id='STACK_GLOBAL'),
        pytest.param(b'\x82\1', id='EXT1'),
        pytest.param(b'c__builtin__\ngetattr\n' + HISTORY + b'X\4\0\0\0mean\x86RN\x85R', id='calls a method'),
        pytest.param(HISTORY + b')\x81}X\7\0\0\0__new__ccollections\nOrderedDict\nsb)\x81', id='NEWOBJ of no class'),
        pytest.param(b'(X\6\0\0\0module' + HISTORY + b'NNtQ', id='module'),
    ],
)
def test_no_opcode_does_more_than_data_needs(tmp_path, data):
    path, mean = tmp_path / 'evil.pth', HistoryBuffer.mean
    torch.save({}, path)
    rewrite(path, lambda _: b'\x80\2' + data + b'.')
    with pytest.raises(UserError, match=r'is refused|not what torch\.save writes'):
        read_checkpoint(path)
    assert HistoryBuffer.mean is mean


def test_files_that_torch_would_run_or_unpack_are_not_read(tmp_path):
    torch.jit.script(torch.nn.Identity()).save(tmp_path / 'script.pth')
    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            archive.add(__file__, name)
    for name, words in [('script.pth', 'TorchScript'), ('old.pth', r'\.tar')]:
        with pytest.raises(UserError, match=rf"{name}'.* cannot be read, .*{words}"):
            read_checkpoint(tmp_path / name)


def test_a_tensor_larger_than_its_data_is_not_filled_with_what_lies_behind(tmp_path, loader):
    if loader == 'torch' and torch.__version__ < (2, 10):
        pytest.skip('fixed in torch 2.10')
    torch.save({'w': torch.arange(4.0)}, tmp_path / 'short.pth')
    rewrite(tmp_path / 'short.pth', lambda data: data.replace(b'K\x04', b'K\xff'))
    with pytest.raises(UserError, match='16 bytes'):
        read_checkpoint(tmp_path / 'short.pth')


@pytest.mark.parametrize('options', [{}, {'_use_new_zipfile_serialization': False}], ids=['zip', 'legacy'])
def test_what_a_checkpoint_may_hold_is_read_as_it_was(tmp_path, monkeypatch, options):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    shared = torch.arange(6.0).reshape(2, 3)
    model = torch.nn.Linear(3, 2).bfloat16()
    saved = dict(
        state_dict=model.state_dict(),
        parameter=model.weight,
        views=[shared, shared.t(), shared[1:]],
        types=[torch.uint8, torch.bool, torch.device('cpu'), torch.Size([2])],
        plain=[1, -(2**40), 0.5, 'ä', b'b', None],
        some={1, 2},
        arrays=[np.arange(3), np.float32(0.5)],
    )
    torch.save(saved, tmp_path / 'a.pth', **options)
    loaded = read_checkpoint(tmp_path / 'a.pth', map_location='cpu')
    assert loaded['state_dict']._metadata == saved['state_dict']._metadata
    assert isinstance(loaded['parameter'], torch.nn.Parameter)
    assert loaded['views'][0].data_ptr() == loaded['views'][1].data_ptr()
    torch.testing.assert_close(
        [loaded[key] for key in ('parameter', 'views', 'arrays')],
        [saved[key] for key in ('parameter', 'views', 'arrays')],
        rtol=0,
        atol=0,
    )
    assert all(torch.equal(loaded['state_dict'][name], value) for name, value in saved['state_dict'].items())
    assert [loaded[key] for key in ('types', 'plain', 'some')] == [saved[key] for key in ('types', 'plain', 'some')]


@pytest.mark.parametrize('owner, name', [(HistoryBuffer, '__init__'), (np.dtype, 'type'), ([], 'append')])
def test_getattr_reaches_nothing_but_the_statistics_of_a_log(tmp_path, owner, name):
    torch.save({'meta': Payload(getattr, owner, name)}, tmp_path / 'evil.pth')
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / 'evil.pth')


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
    torch.save({'state_dict': {'w': torch.arange(4.0)}}, tmp_path / 'www' / 'good.pth')
    torch.save({'meta': Payload(open, sentinel, 'w')}, tmp_path / 'www' / 'evil.pth')
    loaded = CheckpointLoader.load_checkpoint(f'{server}/good.pth?download=true', map_location='cpu')
    assert loaded['state_dict']['w'].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match='refused'):
        CheckpointLoader.load_checkpoint(f'{server}/evil.pth')
    with pytest.raises(UserError, match='could not be downloaded: HTTP Error 404'):
        CheckpointLoader.load_checkpoint(f'{server}/gone.pth')


def test_no_loader_is_left_that_unpickles(tmp_path, server, sentinel, monkeypatch):
    assert {loader.__module__ for loader in CheckpointLoader._schemes.values()} == {mmtr.engine.loaders.__name__}
    torch.save({'state_dict': {'backbone.w': torch.arange(4.0)}}, tmp_path / 'www' / 'good.pth')
    torch.save({'meta': Payload(open, sentinel, 'w')}, tmp_path / 'www' / 'evil.pth')

    class Storage:
        @staticmethod
        def get_local_path(path):
            return contextlib.nullcontext(tmp_path / 'www' / os.path.basename(path))

    monkeypatch.setattr(mmtr.engine.loaders, 'get_file_backend', lambda *args, **kwargs: Storage)
    monkeypatch.setattr(stock, 'get_mmcls_models', lambda: {name: f'{server}/{name}.pth' for name in ('good', 'evil')})
    assert CheckpointLoader.load_checkpoint('mmcls://good')['state_dict']['w'].tolist() == [0, 1, 2, 3]
    assert CheckpointLoader.load_checkpoint('s3://bucket/good.pth')['state_dict']['backbone.w'].tolist() == [0, 1, 2, 3]
    for name, words in [
        ('mmcls://evil', 'refused'),
        ('cluster:s3://bucket/evil.pth', 'refused'),
        ('pavi://evil.pth', 'download it'),
        ('mmcls://nothing', 'no checkpoint that mmengine knows'),
    ]:
        with pytest.raises(UserError, match=words):
            CheckpointLoader.load_checkpoint(name)
