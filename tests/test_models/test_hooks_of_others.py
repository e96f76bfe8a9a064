"""Hooks that others put on layers, attention and FFN see the tensors that they see in the stock model."""

import copy

import pytest
import torch
from mmseg.models.backbones import SwinTransformer as StockSwin
from mmseg.models.backbones import VisionTransformer as StockViT

from mmtr.models.backbones import EVA02, SwinTransformer, VisionTransformer

VIT = dict(img_size=(32, 48), patch_size=8, embed_dims=16, num_layers=3, num_heads=2, mlp_ratio=2, final_norm=True)
SWIN = dict(
    embed_dims=16,
    depths=(2, 2),
    num_heads=(1, 2),
    window_size=4,
    strides=(4, 2),
    out_indices=(0, 1),
    drop_path_rate=0.0,
)
EVA = dict(img_size=(32, 48), patch_size=8, embed_dims=16, num_layers=3, num_heads=2)


def layers_of(model):
    return [*getattr(model, 'layers', ()), *(block for stage in getattr(model, 'stages', ()) for block in stage.blocks)]


def watch(model):
    """What goes in and out, and the gradient of what goes out, of each layer, its attention, norms and FFN, by name."""
    seen = {}

    def note(name):
        def hook(module, args, out):
            if name in seen:  # computed again for the gradient
                return
            seen[name] = [args[0].detach().clone(), out.detach().clone()]
            out.register_hook(lambda grad: seen[name].append(grad.clone()))

        return hook

    for i, layer in enumerate(layers_of(model)):
        for part in ('', 'attn', 'ffn', 'ffn.layers'):
            layer.get_submodule(part).register_forward_hook(note((i, part)))
    return seen


@pytest.mark.parametrize(
    'stock, ours, settings',
    [(StockViT, VisionTransformer, VIT), (StockSwin, SwinTransformer, SWIN)],
    ids=['ViT', 'Swin'],
)
@pytest.mark.parametrize('with_cp', [False, True])
def test_hooks_see_what_they_see_in_stock(stock, ours, settings, with_cp):
    torch.manual_seed(0)
    stock, ours = stock(**settings, with_cp=False), ours(**settings, with_cp=with_cp)
    for model in (stock, ours):
        model.train()
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(2, 3, 32, 48)
    both = []
    for model in (stock, ours):
        seen = watch(model)
        sum(out.square().sum() for out in model(images)).backward()
        both.append(seen)
    assert both[0].keys() == both[1].keys() and len(both[0]) == 4 * len(layers_of(stock))
    for name, expected in both[0].items():
        assert len(expected) == 3
        for found, each in zip(both[1][name], expected):
            torch.testing.assert_close(found, each, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kind, settings', [(VisionTransformer, VIT), (EVA02, EVA)])
@pytest.mark.parametrize(
    'reduction', [None, dict(type='ToMe', r=0.3), dict(type='TokenAdapter', layers=(1, 3))], ids=str
)
def test_a_hook_may_change_what_a_layer_gives(kind, settings, reduction):
    model = kind(**settings, token_reduction=reduction).eval()
    images = torch.randn(1, 3, 32, 48)
    hooked = copy.deepcopy(model)
    with torch.no_grad():
        for i, part in ((0, 'attn'), (1, 'ffn'), (2, '')):
            handle = hooked.layers[i].get_submodule(part).register_forward_hook(lambda module, args, out: out * 0)
            assert not torch.allclose(hooked(images)[-1], model(images)[-1], atol=1e-3), (i, part)
            handle.remove()
            torch.testing.assert_close(hooked(images)[-1], model(images)[-1])


@pytest.mark.parametrize('kind, settings', [(VisionTransformer, VIT), (EVA02, EVA), (SwinTransformer, SWIN)])
def test_full_backward_and_pre_hooks_run(kind, settings):
    model = kind(**settings, token_reduction=dict(type='GridPool'))
    model.train()
    inputs, gradients = [], []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        layer.register_full_backward_hook(lambda module, into, out: gradients.append(out[0]))
    sum(out.square().sum() for out in model(torch.randn(1, 3, 32, 48))).backward()
    count = len(layers_of(model))
    assert len(inputs) == len(gradients) == count
    assert all(grad.abs().sum() > 0 for grad in gradients)
