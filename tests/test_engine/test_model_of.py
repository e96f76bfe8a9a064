"""A data_preprocessor beside the model is the model's, without a runner as with one."""

import copy

import pytest
import torch

from mmtr.checks.config import check_config
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.export.onnx import default_shape
from mmtr.inference.model import build_model, init_model
from mmtr.inference.tta import use_tta


@pytest.fixture
def beside(tiny_segmenter):
    """The tiny config with its data_preprocessor beside the model."""
    tiny_segmenter.data_preprocessor = tiny_segmenter.model.pop('data_preprocessor')
    return tiny_segmenter


def test_images_are_normalised_as_by_a_runner(beside, make_runner):
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)]
    inputs = make_runner(beside).model.data_preprocessor(dict(inputs=images))['inputs']
    torch.testing.assert_close(inputs[0], (images[0] - 127.5) / 64)
    for build in (build_model, init_model):
        found = build(beside, device='cpu').data_preprocessor(dict(inputs=images))['inputs']
        torch.testing.assert_close(found, inputs)
    use_tta(beside)
    for model in (build_model(beside), make_runner(beside).model):
        torch.testing.assert_close(model.module.data_preprocessor(dict(inputs=images))['inputs'], inputs)


def test_in_test_time_augmentation_too_the_models_own_comes_first(beside, make_runner):
    beside.model.data_preprocessor = dict(beside.data_preprocessor, mean=[1.0] * 3)
    use_tta(beside)
    for model in (build_model(beside), make_runner(beside).model):
        assert model.module.data_preprocessor.mean.flatten().tolist() == [1.0] * 3


def test_the_models_own_comes_first_and_the_config_stays_as_it_is(beside):
    before = copy.deepcopy(beside.to_dict())
    build_model(beside)
    assert beside.to_dict() == before
    assert model_of(beside)['data_preprocessor'] == beside.data_preprocessor and model_of({}) == {}
    own = dict(type='SegDataPreProcessor', size=(32, 48))
    beside.model.data_preprocessor = own
    assert model_of(beside)['data_preprocessor'] == own and default_shape(beside) == (32, 48)


def test_it_is_checked_and_its_size_known(beside):
    assert default_shape(beside) == (64, 64)
    beside.data_preprocessor.size = None
    with pytest.raises(UserError, match='model.data_preprocessor has size=None and size_divisor=None'):
        check_config(beside, ('train_dataloader',))
