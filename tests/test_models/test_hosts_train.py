"""Training through a reduction in every host: the loss falls, and every weight gets a gradient."""

import pytest
import torch

from tests.test_models.test_attention_contract import every_host
from tests.test_reducers.test_contract import images


@every_host
@pytest.mark.parametrize('name', ['GridPool', 'TokenAdapter'])
def test_the_loss_falls(host, name):
    model = host(dict(type=name)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs, losses, reached = images(2), [], set()
    with torch.no_grad():
        targets = [torch.randn_like(out) for out in model(inputs)]
    for _ in range(6):
        loss = sum((out - target).square().mean() for out, target in zip(model(inputs), targets))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        reached |= {name for name, p in model.named_parameters() if p.grad.abs().max() > 0}
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses
    # A bias of keys changes nothing, and a backbone without class token keeps its weight.
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert matrices - reached <= {'cls_token'}
