import pytest
import torch
from mmseg.models.backbones import VisionTransformer as Stock

from mmtr import UserError
from mmtr.models.backbones import VisionTransformer

SMALL = dict(img_size=(64, 96), embed_dims=32, num_layers=3, num_heads=4)


def twins(**kwargs):
    """A stock backbone with weights that matter, and ours with the same."""
    torch.manual_seed(0)
    stock, ours = Stock(**SMALL, **kwargs), VisionTransformer(**SMALL, **kwargs)
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(final_norm=True),
        dict(out_indices=[0, 2], final_norm=True),
        dict(with_cls_token=False),
        dict(output_cls_token=True),
        dict(out_origin=True, pre_norm=True),
        dict(qkv_bias=False, patch_bias=True),
        dict(patch_norm=True),
        dict(attn_backend='math'),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(64, 96), (80, 80), (57, 131)], ids=str)
def test_outputs_are_the_stock_ones(kwargs, size):
    backend = dict(attn_backend=kwargs.pop('attn_backend')) if 'attn_backend' in kwargs else {}
    stock, ours = twins(**kwargs)
    if backend:
        ours = VisionTransformer(**SMALL, **kwargs, **backend)
        ours.load_state_dict(stock.state_dict())
    stock.eval()
    ours.eval()
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        for expected, out in zip(stock(x), ours(x)):
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_training_draws_the_same_drop_path_and_gives_the_same_gradients():
    stock, ours = twins(drop_path_rate=0.5)
    x = torch.randn(4, 3, 64, 96)
    grads = []
    for model in (stock, ours):
        model.train()
        torch.manual_seed(1)
        model(x)[0].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3)


def test_frozen_parameters_are_the_stock_ones():
    stock, ours = twins(frozen_exclude=['norm', 'ln'])
    assert [p.requires_grad for p in stock.parameters()] == [p.requires_grad for p in ours.parameters()]
    assert not all(p.requires_grad for p in ours.parameters())


def test_pretrained_weights_are_resized(tmp_path):
    stock = Stock(**{**SMALL, 'img_size': (64, 64)})
    torch.nn.init.normal_(stock.pos_embed)
    torch.save(stock.state_dict(), tmp_path / 'square.pth')
    init = dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'square.pth')))
    expected, ours = Stock(**SMALL, **init), VisionTransformer(**SMALL, **init)
    expected.init_weights()
    ours.init_weights()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_modes_can_be_chained():
    assert VisionTransformer(**SMALL).eval().train().training


def test_image_smaller_than_a_patch_is_refused():
    with pytest.raises(UserError, match='image of 12x64 pixels .* one patch of 16x16'):
        VisionTransformer(**SMALL)(torch.zeros(1, 3, 12, 64))


def test_unknown_attention_is_refused_when_built():
    with pytest.raises(UserError, match="attn_backend='fast'"):
        VisionTransformer(**SMALL, attn_backend='fast')


def test_fused_attention_leaves_other_uses_to_stock():
    # Cross-attention and masks are no plain self-attention.
    from mmcv.cnn.bricks.transformer import MultiheadAttention as StockAttention

    from mmtr.models.backbones.common.twins import make_twin

    stock = StockAttention(32, 4, batch_first=True)
    ours = make_twin(stock, 'auto').eval()
    stock.eval()
    x, memory, mask = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.ones(5, 5).triu(1).bool()
    for args, kwargs in [
        ((x, memory, memory), {}),
        ((x,), dict(attn_mask=mask)),
        ((x,), dict(query_pos=x)),
        ((x, x, x), {}),
        ((x,), dict(identity=2 * x)),
    ]:
        torch.testing.assert_close(ours(*args, **kwargs), stock(*args, **kwargs), atol=1e-5, rtol=1e-4)
