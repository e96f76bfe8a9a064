import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS

from mmtr import UserError, apply_token_reduction

REDUCTION = dict(type='TokenAdapter', restore='copy', ratio=0.25, layers=(1, 2))


def stock_segmentor(cfg):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_three_ways_give_one_model(tiny_segmenter):
    x = torch.randn(2, 3, 64, 64)
    stock = stock_segmentor(tiny_segmenter)
    weights = copy.deepcopy(stock.state_dict())

    by_key = copy.deepcopy(tiny_segmenter)
    by_key.model.backbone.update(type='mmtr.VisionTransformer', token_reduction=REDUCTION)
    by_key = MODELS.build(by_key.model).eval()
    by_key.load_state_dict(weights, strict=True)

    by_hook = copy.deepcopy(tiny_segmenter)
    by_hook.custom_hooks = [dict(type='mmtr.TokenReductionHook', token_reduction=REDUCTION)]
    by_hook.experiment_name = 'by_hook'
    runner = Runner.from_cfg(by_hook)
    runner.call_hook('before_run')
    runner.model.load_state_dict(weights, strict=True)

    with torch.no_grad():
        plain = stock(x)
        expected = by_key(x)
        assert not torch.allclose(plain, expected, atol=1e-3)
        torch.testing.assert_close(runner.model.eval()(x), expected)
        assert apply_token_reduction(stock, REDUCTION) is stock
        torch.testing.assert_close(stock(x), expected)
        torch.testing.assert_close(apply_token_reduction(stock, None)(x), plain, atol=1e-5, rtol=1e-4)
    assert stock.state_dict().keys() == weights.keys()


def test_stock_backbone_keeps_its_own_forward(tiny_segmenter):
    stock = stock_segmentor(tiny_segmenter).backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = stock(x)[0]
        reduced = apply_token_reduction(stock, REDUCTION)
        assert reduced is not stock and reduced.pos_embed is stock.pos_embed
        assert torch.equal(stock(x)[0], before)
        assert not torch.equal(reduced(x)[0], before)


def test_training_steps_reach_the_shared_weights(tiny_segmenter):
    model = stock_segmentor(tiny_segmenter)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    apply_token_reduction(model, REDUCTION)
    model(torch.randn(1, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert 'backbone.layers.1.attn.attn.in_proj_weight' in changed


def test_model_without_a_vit_is_refused():
    with pytest.raises(UserError, match='cannot be reduced in a Linear of torch: use a model with the backbone'):
        apply_token_reduction(torch.nn.Linear(2, 2), REDUCTION)


def test_wrong_setting_is_named(tiny_segmenter):
    with pytest.raises(UserError, match='ratio=2 '):
        apply_token_reduction(stock_segmentor(tiny_segmenter), dict(type='TokenAdapter', ratio=2))
