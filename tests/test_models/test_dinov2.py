import pytest
import torch

from mmtr import UserError
from mmtr.analysis import flops
from mmtr.models.backbones import DINOv2

SMALL = dict(img_size=(56, 84), embed_dims=32, num_layers=3, num_heads=4)


def dinov2(**kwargs):
    torch.manual_seed(0)
    model = DINOv2(**{**SMALL, 'layer_scale_init_value': 0.5, **kwargs})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize('kwargs', [dict(), dict(num_registers=4), dict(with_cls_token=False)], ids=str)
@pytest.mark.parametrize('size', [(56, 84), (14, 70), (57, 131), (100, 15)], ids=str)
def test_any_size_is_taken(kwargs, size):
    with torch.no_grad():
        (out,) = dinov2(**kwargs)(torch.rand(2, 3, *size))
    # What is no multiple of the patch is padded at the lower right.
    assert out.shape == (2, 32, -(-size[0] // 14), -(-size[1] // 14)) and out.isfinite().all()


def test_padding_is_black_pixels_at_the_lower_right():
    model, x = dinov2(), torch.rand(1, 3, 57, 131)
    padded = torch.zeros(1, 3, 70, 140)
    padded[..., :57, :131] = x
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded))


def test_grids_of_as_many_patches_have_other_positions():
    model = dinov2(img_size=84)
    with torch.no_grad():
        blank = torch.zeros(1, 3, 56, 126)
        wide, square = model._embed(blank), model._embed(blank.view(1, 3, 84, 84))
    assert wide.x.shape == square.x.shape == (1, 37, 32)
    torch.testing.assert_close(wide.x[:, 0], square.x[:, 0])
    assert not torch.allclose(wide.x, square.x, atol=0.1)


def test_registers_have_no_position_and_stand_behind_the_class_token():
    model = dinov2(num_registers=4)
    with torch.no_grad():
        tokens = model._embed(torch.rand(2, 3, 56, 84))
    assert tokens.num_prefix == model.token_reducer.backbone.num_prefix == 5 and tokens.patches.shape[1] == 24
    assert torch.equal(tokens.x[:, 1:5], model.register_tokens.expand(2, -1, -1))
    assert torch.equal(tokens.x[:, 0], (model.cls_token + model.pos_embed[:, :1])[:, 0].expand(2, -1))


@pytest.mark.parametrize('registers, antialias, offset', [(0, False, 0.1), (4, True, 0.0)])
def test_interpolation_is_that_of_the_released_models(registers, antialias, offset):
    model = dinov2(num_registers=registers)
    assert (model.antialias, model.offset) == (antialias, offset)
    model = dinov2(num_registers=registers, interpolate_antialias=not antialias, interpolate_offset=0.25)
    assert (model.antialias, model.offset) == (not antialias, 0.25)


def test_sizes_have_the_published_parameters():
    # Those of the released models, which have a mask token in addition.
    for dims, depth, heads, count in [(384, 12, 6, 22056576), (768, 12, 12, 86580480), (1024, 24, 16, 304368640)]:
        model = DINOv2(embed_dims=dims, num_layers=1, num_heads=heads)
        layer = sum(p.numel() for p in model.layers[0].parameters())
        assert sum(p.numel() for p in model.parameters()) + (depth - 1) * layer + dims == count


def test_fresh_layers_start_near_the_identity_and_registers_differ():
    torch.manual_seed(0)
    model = DINOv2(**SMALL, num_registers=4)
    model.init_weights()
    for layer in model.layers:
        assert (layer.attn.gamma1.weight == 1e-5).all() and (layer.ffn.gamma2.weight == 1e-5).all()
    assert model.register_tokens.std() > 0.01 and torch.cdist(model.register_tokens, model.register_tokens)[0, 0, 1] > 0


def test_drop_path_skips_attention_too():
    rates = [(layer.attn.dropout_layer, layer.ffn.dropout_layer) for layer in dinov2(drop_path_rate=0.4).layers]
    assert [[getattr(m, 'drop_prob', 0) for m in pair] for pair in rates] == [
        [0, 0],
        pytest.approx([0.2, 0.2]),
        pytest.approx([0.4, 0.4]),
    ]
    model = dinov2(num_layers=2, drop_path_rate=0.5).train()
    for gamma in (layer.ffn.gamma2.weight for layer in model.layers):
        torch.nn.init.zeros_(gamma)
    with torch.no_grad():
        torch.nn.init.zeros_(model.layers[0].attn.gamma1.weight)
        outs = model(torch.rand(1, 3, 56, 84).expand(64, -1, -1, -1))[0].flatten(1)
    # Images whose attention branch was skipped, and those where it was doubled.
    assert len({round(float(out[0]), 4) for out in outs}) == 2


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(num_registers=-1), 'num_registers=-1'),
        (dict(num_registers=True), 'num_registers=True'),
        (dict(num_registers='4'), "num_registers='4'"),
        (dict(num_registers=4, with_cls_token=False), 'num_registers=4 needs the class token'),
        (dict(out_indices=(0, 3)), r'out_indices=\(0, 3\) names layer 3'),
        (dict(interpolate_offset=1.0), 'offset=1.0'),
        (dict(layer_scale_init_value=0), 'layer_scale_init_value=0'),
        (dict(attn_backend='fast'), "attn_backend='fast'"),
        (dict(token_reduction=dict(type='ToMe', r=2.0)), 'token_reduction.r=2.0'),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_when_built(settings, said):
    with pytest.raises(UserError, match=said):
        DINOv2(**{**SMALL, **settings})


@pytest.mark.parametrize('registers', [0, 4])
def test_every_multiply_add_is_counted(registers):
    count = flops.count_flops(dinov2(num_registers=registers), torch.zeros(1, 3, 56, 84))
    assert count.unsupported == {}
    tokens = 24 + 1 + registers
    assert count.by_operator['linear'] == 3 * tokens * 12 * 32 * 32
    assert count.by_operator['scaled_dot_product_attention'] == 3 * 2 * tokens**2 * 32
