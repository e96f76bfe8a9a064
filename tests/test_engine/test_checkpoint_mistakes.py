"""Files that hold no checkpoint, or no weights: what is said."""

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

import mmtr.engine.loaders
import mmtr.weights.files
from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint

pytestmark = pytest.mark.usefixtures('loader')


@pytest.mark.parametrize('options', [{}, {'_use_new_zipfile_serialization': False}], ids=['zip', 'legacy'])
@pytest.mark.parametrize('kept', [0.0, 0.1, 0.9])
def test_a_truncated_file_is_called_corrupt(tmp_path, options, kept):
    path = tmp_path / 'half.pth'
    torch.save({'state_dict': {'weight': torch.ones(1000)}}, path, **options)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"half\.pth' \(\d+ bytes\) cannot be read, it is corrupt"):
        CheckpointLoader.load_checkpoint(str(path))


def test_what_is_no_checkpoint_is_said_in_words(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    for name, words in [
        ('gone.pth', 'is not there'),
        ('.', 'is a folder'),
        ('page.pth', 'no checkpoint'),
        ('list.pth', 'holds a list'),
    ]:
        with pytest.raises(UserError, match=words):
            CheckpointLoader.load_checkpoint(str(tmp_path / name))
    with pytest.raises(UserError, match='open-mmlab://nothing'):
        CheckpointLoader.load_checkpoint('open-mmlab://nothing')


@pytest.mark.parametrize(
    'held, words',
    [
        (dict(state_dict=None), 'a state_dict that is a NoneType'),
        (dict(state_dict=[torch.ones(1)]), 'a state_dict that is a list'),
        (dict(state_dict={1: torch.ones(1)}), 'weights by the name 1'),
        ({1: torch.ones(1)}, 'weights by the name 1'),
        (dict(state_dict=dict(w=None)), 'a NoneType where the weight w should be'),
        # Of the same shape, but mmengine would leave the random weight.
        (dict(state_dict=dict(w=np.ones(1))), 'a ndarray where the weight w should be'),
        (dict(state_dict={}, meta=[]), 'a meta that is a list'),
        (dict(state_dict={}, meta=dict(dataset_meta=1)), r'a meta\.dataset_meta that is a int'),
        (dict(state_dict={}, meta=dict(dataset_meta=dict(classes=1))), r'a meta\.dataset_meta\.classes that is a int'),
        (dict(state_dict={}, meta=dict(frozen_weights='x')), r'a meta\.frozen_weights that is a str'),
    ],
)
def test_weights_that_are_none_are_said_in_words(tmp_path, held, words):
    torch.save(held, tmp_path / 'odd.pth')
    with pytest.raises(UserError, match=rf"odd\.pth' has {words}"):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'odd.pth'))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_that_are_no_numbers_are_said_once(tmp_path, monkeypatch, dtype):
    said = []
    monkeypatch.setattr(mmtr.weights.files, 'print_log', lambda text, **kwargs: said.append(text))
    large = torch.ones(100, dtype=dtype) * torch.finfo(dtype).max  # whose sum is infinite
    weights = dict(large=large, count=torch.tensor(3), nan=large.clone(), inf=large.clone(), none=large[:0])
    torch.save(dict(state_dict=dict(large=large)), tmp_path / 'good.pth')
    read_checkpoint(tmp_path / 'good.pth')
    assert not said
    weights['nan'][7], weights['inf'][99] = float('nan'), -float('inf')
    torch.save(dict(state_dict=weights), tmp_path / 'bad.pth')
    for _ in range(2):
        read_checkpoint(tmp_path / 'bad.pth', 'meta')
        read_checkpoint(tmp_path / 'bad.pth')
    assert said == [f"'{tmp_path}/bad.pth' holds NaN or infinite values in 2 of 5 weights, such as nan."]


def test_a_storage_without_its_package_is_said():
    with pytest.raises(UserError, match="'s3://bucket/a.pth' is out of reach: .*petrel_client"):
        CheckpointLoader.load_checkpoint('s3://bucket/a.pth')
