"""The learned code of what merging loses: nothing at first, then what its equation says, in all that merges."""

import pytest
import torch

from mmtr.models.backbones import VisionTransformer
from mmtr.reducers.residual_code import ResidualCode
from mmtr.undo import Change, Merged, way_back

METHODS = [
    dict(type='ALGM', threshold=0.2),
    dict(type='CubistMerge'),
    dict(type='Expediting'),
    dict(type='GridPool'),
    dict(type='MPM', layers=(1, 2)),
    dict(type='TokenAdapter', per_layer=1),
    dict(type='ToMe', mode='progressive', r=2),
]


@pytest.fixture(scope='module')
def backbone():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=(64, 96), patch_size=16, embed_dims=32, num_layers=4, num_heads=2, final_norm=True
    )
    model.init_weights()
    return model.eval()


def test_it_adds_what_the_equation_says():
    code = ResidualCode(8)
    torch.nn.init.normal_(code.decode.weight)
    z, y = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    for i in range(3):
        expected = torch.zeros(8)
        for k in range(2):
            gate = 1 / (1 + torch.exp(-(code.gate.weight[k] @ y[0, i] + code.gate.bias[k])))
            expected += code.decode.weight[:, k] * gate * (code.encode.weight[k] @ z[0, i])
        assert torch.allclose(code(z, y)[0, i], expected, atol=1e-6)


@pytest.mark.parametrize('settings', METHODS, ids=lambda settings: settings['type'])
def test_it_starts_as_residual_and_is_trained_whole(backbone, settings):
    images = torch.randn(2, 3, 64, 96)
    backbone.set_token_reduction({**settings, 'restore': 'residual'})
    expected = backbone(images)[-1]
    backbone.set_token_reduction({**settings, 'restore': 'learned'})
    backbone.token_reducer.init_weights()
    assert torch.equal(backbone(images)[-1], expected)
    code = backbone.token_reducer.restoration
    assert all(parameter.numel() for parameter in code.parameters()) and code.decode.weight.eq(0).all()
    torch.nn.init.normal_(code.decode.weight)
    found = backbone(images)[-1]
    assert not torch.allclose(found, expected)
    found.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in code.parameters())


def test_two_merges_have_one_code_of_the_whole_residual():
    def code(residual, restored):
        return 10 * residual + restored

    x = torch.tensor([[[1.0], [3.0], [8.0]]])
    first, second = Merged(torch.tensor([[0, 0, 1]])), Merged(torch.tensor([[0, 0]]))
    halves, one = torch.tensor([[[2.0], [8.0]]]), torch.tensor([[[5.0]]])
    undo = way_back(way_back(None, first, x, halves, True, code), second, halves, one, True, code)
    assert isinstance(undo, Change) and undo.residual.flatten().tolist() == [-4.0, -2.0, 3.0]
    assert undo.expand(torch.tensor([[[7.0]]])).flatten().tolist() == [7 - 4 - 40 + 7, 7 - 2 - 20 + 7, 7 + 3 + 30 + 7]
