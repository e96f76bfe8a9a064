import pytest
import torch
from mmseg.models.decode_heads import SegmenterMaskTransformerHead as Stock

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.models.decode_heads import SegmenterMaskTransformerHead

SMALL = dict(in_channels=32, channels=32, num_classes=5, num_layers=2, num_heads=4, embed_dims=32, dropout_ratio=0.0)


def heads(*reductions):
    """A stock head with weights that matter, and one of ours for each reduction with the same."""
    torch.manual_seed(0)
    stock = Stock(**SMALL)
    for parameter in stock.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    ours = [SegmenterMaskTransformerHead(**SMALL, token_reduction=reduction) for reduction in reductions]
    for head in ours:
        head.load_state_dict(stock.state_dict(), strict=True)
        head.eval()
    return stock.eval(), *ours


@pytest.mark.parametrize(
    'reduction',
    [None, dict(type='GridPool', ratio=0.0, layers=(0, 2)), dict(type='TokenAdapter', ratio=0.3, layers=(2, 2))],
    ids=str,
)
def test_without_reduction_outputs_and_keys_are_the_stock_ones(reduction):
    stock, ours = heads(reduction)
    x = torch.randn(2, 32, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours([x]), stock([x]), atol=1e-5, rtol=1e-4)
    assert ours.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize(
    'reduction',
    [
        dict(type='GridPool', layers=(0, 2)),
        dict(type='TokenAdapter', restore='residual'),
        dict(type='ToMe', r=0.4),
        dict(type='ALGM', threshold=0.3, local_layer=0, global_layer=1),
        dict(type='Random', layer=0),
    ],
    ids=str,
)
def test_classes_are_kept_and_every_patch_gets_a_mask(reduction):
    stock, ours = heads(reduction)
    seen = []
    ours.layers[1].register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs['step'].tokens), with_kwargs=True
    )
    x = torch.randn(2, 32, 5, 7)
    with torch.no_grad():
        out = ours([x])
        alone = ours([x[1:]])
    assert out.shape == (2, 5, 5, 7) and seen[0].prefix.shape == (2, 5, 32)
    torch.testing.assert_close(out[1:], alone, atol=1e-5, rtol=1e-4)
    assert count_flops(ours, [x]).total < count_flops(stock, [x]).total


def test_residual_pooling_that_changes_nothing_is_stock():
    stock, ours = heads(dict(type='GridPool', ratio=0.5, layers=(0, 2)))
    for head in (stock, ours):
        for layer in head.layers:
            for linear in (layer.attn.attn.out_proj, layer.ffn.layers[1]):
                torch.nn.init.zeros_(linear.weight)
                torch.nn.init.zeros_(linear.bias)
    x = torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours([x]), stock([x]), atol=1e-5, rtol=1e-4)


def test_a_reduction_that_reads_the_class_token_is_refused():
    with pytest.raises(UserError, match="type='EViT' reads the class token, which only a backbone has"):
        heads(dict(type='EViT'))
