"""The ways of reading a checkpoint file."""

import pytest
import torch

from mmtr.weights import safe_load


@pytest.fixture(params=['torch', 'ours'])
def loader(request, monkeypatch):
    """Both ways of reading a file: by torch, and by the unpickler for a torch before 2.6."""
    if request.param == 'torch' and not safe_load.TORCH_READS_DATA:
        pytest.skip(f'torch {torch.__version__} cannot read a checkpoint as data')
    monkeypatch.setattr(safe_load, 'TORCH_READS_DATA', request.param == 'torch')
    return request.param
