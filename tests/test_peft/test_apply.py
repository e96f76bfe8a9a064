"""``mmtr.apply_peft``: the key ``peft`` for a model that exists already."""

import copy

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmseg.models.backbones import SwinTransformer as StockSwin
from torch import nn

import mmtr
from mmtr import UserError
from mmtr.engine import TrainableConstructor
from mmtr.models.backbones import SwinTransformer

from .swin_settings import TINY

LORA = dict(type='LoRA', rank=2, targets='.*')


def build(cfg, kind):
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.type = kind
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(MMLogger, 'callHandlers', lambda self, record: lines.append(record.getMessage()))
    return lines


@pytest.mark.parametrize('kind', ['VisionTransformer', 'mmtr.VisionTransformer'])
@pytest.mark.parametrize('peft', [LORA, dict(type='DAR', bottleneck=3, compensator=2)], ids=lambda cfg: cfg['type'])
def test_it_is_the_model_of_the_key(tiny_segmenter, said, kind, peft):
    model, x = build(tiny_segmenter, kind).double(), torch.rand(2, 3, 64, 96).double()
    weights = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = model(x)
        assert mmtr.apply_peft(model, peft) is model
        torch.testing.assert_close(model(x), before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    by_key = copy.deepcopy(tiny_segmenter)
    by_key.model.backbone.peft = peft
    by_key = build(by_key, 'mmtr.VisionTransformer').double()
    for parameter in model.backbone.peft.parameters():
        nn.init.normal_(parameter)
    by_key.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(by_key(x), model(x))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in by_key.named_parameters() if p.requires_grad}
    assert not any(module.training for module in [*model.backbone.peft.modules(), *model.backbone.layers.modules()])
    model.train()
    assert model.backbone.peft.training and not model.backbone.layers[0].training
    (table,) = (text for text in said if text.startswith('Parameters:\n'))
    count = sum(p.numel() for p in model.backbone.peft.parameters())
    assert any(line.split() == ['backbone.peft', f'{count:,}', '0', '100.00'] for line in table.splitlines())


def test_a_runner_trains_what_was_applied_and_nothing_else(tiny_segmenter, tmp_path):
    cfg = tiny_segmenter
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    model = mmtr.apply_peft(build(cfg, 'VisionTransformer'), LORA)
    before = copy.deepcopy(model.state_dict())
    optimizer = TrainableConstructor(dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1)))(model)
    Runner(
        model,
        str(tmp_path / 'work'),
        train_dataloader=cfg.train_dataloader,
        default_scope='mmseg',
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=optimizer,
        default_hooks=dict(checkpoint=None),
        experiment_name='applied',
    ).train()
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same == (name.startswith('backbone.') and 'peft' not in name) or 'decode_head' in name, name


def test_a_backbone_by_itself_and_beside_a_reduction(tiny_segmenter):
    stock = StockSwin(**TINY)
    tuned = mmtr.apply_peft(stock, LORA)
    assert isinstance(tuned, SwinTransformer) and tuned.stages[0].blocks[0].attn.w_msa.qkv.weight is (
        stock.stages[0].blocks[0].attn.w_msa.qkv.weight
    )
    assert {name.partition('.')[0] for name, p in tuned.named_parameters() if p.requires_grad} == {
        'peft',
        'norm0',
        'norm1',
    }
    model = mmtr.apply_token_reduction(build(tiny_segmenter, 'VisionTransformer'), dict(type='GridPool'))
    mmtr.apply_peft(model, LORA)
    assert type(model.backbone.token_reducer).__name__ == 'GridPool'


@pytest.mark.parametrize(
    'peft, words',
    [
        (None, 'peft=None trains nothing beside the frozen weights'),
        (dict(type='LoRA', rank=0), 'peft.rank=0'),
        (dict(type='LoRA', targets='q'), "peft.targets='q' is no linear layer"),
    ],
    ids=str,
)
def test_what_cannot_work_leaves_the_model_as_it_was(tiny_segmenter, peft, words):
    model = build(tiny_segmenter, 'mmtr.VisionTransformer')
    with pytest.raises(UserError, match=words):
        mmtr.apply_peft(model, peft)
    assert model.backbone.peft is None and all(p.requires_grad for p in model.parameters())


def test_models_that_cannot_be_tuned_are_refused(tiny_segmenter):
    with pytest.raises(UserError, match='Nothing can be tuned beside the weights in a Linear of torch'):
        mmtr.apply_peft(nn.Linear(2, 2), LORA)
    model = mmtr.apply_peft(build(tiny_segmenter, 'VisionTransformer'), LORA)
    with pytest.raises(UserError, match='has a peft already, LoRA'):
        mmtr.apply_peft(model, LORA)
