import torch
from torch import nn

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
