"""A config file, its model and a checkpoint, for the tools."""

import pytest
import torch


@pytest.fixture
def config(tiny_segmenter, tmp_path):
    """Path of the config file of ``tiny_segmenter``."""
    tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
    return tmp_path / 'tiny.py'


@pytest.fixture
def model(tiny_segmenter, make_runner, tmp_path):
    """The model of ``config``, with random weights that are the same in every run."""
    model = make_runner({**tiny_segmenter, 'work_dir': str(tmp_path / 'made')}).model
    torch.manual_seed(3)  # the runner has just drawn a seed of its own
    for parameter in model.parameters():
        if parameter.ndim > 1:  # random norms would make one class win everywhere
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def weights(model, tmp_path):
    """A checkpoint of ``model``."""
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'
