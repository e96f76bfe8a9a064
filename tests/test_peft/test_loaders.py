"""What was tuned, in loaders that know nothing of ``peft``: with its frozen weights, or refused."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmseg.apis import init_model
from torch import nn

from mmtr import UserError
from mmtr.weights.tuned import take_out_frozen

from .tuned_runs import base_file


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(copy.deepcopy(cfg.model))


@pytest.fixture
def trained(tuned, tmp_path):
    """A tuned model, and its checkpoint as the runner writes it in ``tuned.pth``."""
    torch.manual_seed(3)
    model = build(tuned)
    model.init_weights()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=('a', 'b', 'c', 'd'))))
    take_out_frozen(model, checkpoint)
    torch.save(checkpoint, tmp_path / 'tuned.pth')
    return model.eval()


def stock_runner(cfg, path):
    model = build(cfg)
    load_checkpoint(model, path)
    return model


def init_model_of_mmseg(cfg, path):
    cfg.model.pretrained = None
    return init_model(cfg, path, device='cpu')


def plain_torch(cfg, path):
    model = build(cfg)
    model.load_state_dict(torch.load(path)['state_dict'])
    return model


def a_dict_of_its_own(cfg, path):
    model = build(cfg)
    model.load_state_dict(dict(torch.load(path)['state_dict']))
    return model


loaders = pytest.mark.parametrize('load', [stock_runner, init_model_of_mmseg, plain_torch, a_dict_of_its_own])


@loaders
def test_frozen_weights_are_found(tuned, trained, tmp_path, load):
    model, x = load(tuned, str(tmp_path / 'tuned.pth')).eval(), torch.rand(2, 3, 64, 96)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), trained(x))


@loaders
def test_or_it_is_refused(tuned, trained, tmp_path, load):
    path, x = str(tmp_path / 'tuned.pth'), copy.deepcopy(tuned)
    for changes, words in (
        (
            dict(init_cfg=None),
            'does not say where the frozen weights are: set model.backbone.pretrained .* use '
            'mmtr.init_model, or write one whole file with tools/deploy_model.py',
        ),
        (dict(init_cfg=dict(type='Pretrained', checkpoint='gone.pth')), "needs .*'gone.pth' is not there"),
        (dict(peft=None, token_reduction=None), 'only those that were tuned, and the backbone has no peft'),
        (
            dict(init_cfg=dict(type='Pretrained', checkpoint=base_file(tmp_path / 'other.pth', seed=1))),
            'is not the one that it was tuned with',
        ),
        (dict(peft=dict(type='DAR', bottleneck=6, compensator=3)), 'with another peft'),
    ):
        cfg = copy.deepcopy(x)
        cfg.model.backbone.update(changes)
        if load is a_dict_of_its_own and words.endswith(('tuned with', 'another peft')):
            continue  # nothing in it says what it was tuned with
        with pytest.raises(UserError, match=words):
            load(cfg, path)
    if load is init_model_of_mmseg:  # which takes the init_cfg of a stock segmentor away
        x.model.type = 'EncoderDecoder'
        with pytest.raises(UserError, match='use mmtr.init_model'):
            load(x, path)


def test_frozen_weights_that_were_loaded_stay(tuned, trained, tmp_path):
    other = base_file(tmp_path / 'other.pth', seed=1)
    model = build(tuned)
    whole = {
        **trained.state_dict(),
        **{f'backbone.{name}': value for name, value in torch.load(other)['state_dict'].items()},
    }
    model.load_state_dict(whole)
    model.load_state_dict(dict(torch.load(tmp_path / 'tuned.pth')['state_dict']))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.items())
