import torch
from torch import nn

from mmtr.checks.optimizer import say_unused_keys
from mmtr.registry import OPTIM_WRAPPERS


def test_forward_runs_in_bfloat16_and_parameters_stay_float32():
    model = nn.Linear(4, 2)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='mmtr.CPUAmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    )
    before = model.weight.detach().clone()
    x = torch.randn(3, 4)
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert model(x).dtype == torch.float32
    wrapper.update_params(y.float().sum())
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, before - x.sum(0).expand(2, 4), rtol=0.02, atol=0.02)


def test_settings_that_reach_no_parameter_are_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmtr.checks.optimizer.print_log', lambda text, logger: said.append(text))
    keys = {'0.weight': dict(lr_mult=0.1), 'token_reducer': dict(lr_mult=10.0), 'bias': dict(decay_mult=0.0)}
    say_unused_keys(dict(paramwise_cfg=dict(custom_keys=keys)), nn.Sequential(nn.Linear(2, 2)))
    assert "custom_keys: no parameter has 'token_reducer' in its name" in said[0] and 'such as 0.weight' in said[0]
    for none in (dict(), dict(paramwise_cfg=None), dict(paramwise_cfg=dict(custom_keys=dict(bias={}))), object()):
        say_unused_keys(none, nn.Sequential(nn.Linear(2, 2)))
    assert len(said) == 1
