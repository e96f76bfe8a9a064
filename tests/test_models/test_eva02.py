import math

import pytest
import torch

from mmtr import UserError
from mmtr.analysis import flops
from mmtr.models.backbones import EVA02
from mmtr.models.backbones.common.rotary_layer import RotaryAttention
from mmtr.ops.rotary import rotary_table
from mmtr.tokens import Tokens

SMALL = dict(img_size=(64, 96), embed_dims=32, num_layers=3, num_heads=4)
WINDOWED = dict(window_size=3, window_layers=(0, 2), with_cls_token=False)
HEADS, GRID = 4, (5, 7)


def eva02(**kwargs):
    torch.manual_seed(0)
    model = EVA02(**SMALL, **kwargs)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def attention(**kwargs):
    torch.manual_seed(0)
    module = RotaryAttention(32, HEADS, **kwargs)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def tokens_of(grid, num_prefix=0, batch=2, window=None, **fields):
    x = torch.randn(batch, num_prefix + grid[0] * grid[1], 32, generator=torch.Generator().manual_seed(1))
    tables = tuple(rotary_table(grid, 8, 16, side) for side in (None, window)[: 1 if window is None else 2])
    return Tokens(x, grid, num_prefix, rotary=tables, **fields)


def test_kept_tokens_attend_as_if_the_others_were_hidden():
    module, whole = attention(), tokens_of(GRID, 2)
    index = torch.stack([torch.randperm(35)[:12] for _ in range(2)])
    rows = torch.cat([torch.tensor([[0, 1]]).expand(2, -1), 2 + index], 1).unsqueeze(2).expand(-1, -1, 32)
    hidden = torch.full((2, 37), -torch.inf).scatter(1, rows[..., 0], 0.0)[:, None, None]
    q, k, v = module.at(whole).qkv(whole.x)
    expected = module.at(whole).attend(q, k, v, hidden).gather(1, rows)

    x = whole.x.gather(1, rows)
    torch.testing.assert_close(module.at(whole.replace(x=x, index=index)).branch(x), expected)
    # The same tokens, dropped within the attention alone: of all of them, and of some that were kept before.
    at = module.at(whole)
    torch.testing.assert_close(at.attend(*at.qkv(x, index)), expected)
    more = torch.cat([torch.zeros_like(index[:, :3]), index], 1)
    at = module.at(whole.replace(x=torch.zeros(2, 17, 32), index=more))
    torch.testing.assert_close(at.attend(*at.qkv(x, torch.arange(3, 15).expand(2, -1))), expected)


def test_only_tokens_with_a_position_are_turned():
    module, whole = attention(), tokens_of(GRID, 1)
    index = torch.tensor([[35, 0, 8], [8, 35, 34]])
    x = torch.randn(2, 1, 32).expand(-1, 4, -1)
    q, k, v = module.at(whole.replace(x=x, index=index)).qkv(x)
    plain = x @ module.in_proj.weight.T + torch.cat([module.q_bias, torch.zeros(32), module.v_bias])
    for part, turned in zip(plain.chunk(3, -1), (q, k, v)):
        part = part.unflatten(2, (HEADS, -1)).transpose(1, 2)
        # The prefix token, the first or second patch without a position, and the one at row 0, column 0.
        for image, rows in enumerate(([0, 1, 2], [0, 2])):
            torch.testing.assert_close(turned[image][:, rows], part[image][:, rows])
    assert not torch.allclose(q[0, :, 3], q[0, :, 0], atol=0.1)
    torch.testing.assert_close(q[0, :, 3].norm(dim=-1), q[0, :, 0].norm(dim=-1))


@pytest.mark.parametrize('grid', [(6, 9), GRID, (2, 3)], ids=str)
def test_a_window_attends_as_a_grid_of_its_own(grid):
    window = 3
    module, tokens = attention(window=window), tokens_of(grid, window=window)
    out = module.at(tokens).branch(tokens.x)
    alone = attention()
    cells = torch.arange(grid[0] * grid[1]).view(grid)
    for row in range(0, grid[0], window):
        for column in range(0, grid[1], window):
            cell = cells[row : row + window, column : column + window]
            # What a window at the border lacks is not there; the others keep their place in it.
            index = (torch.arange(cell.shape[0]).unsqueeze(1) * window + torch.arange(cell.shape[1])).flatten()
            x = tokens.x[:, cell.flatten()]
            part = tokens_of((window, window)).replace(x=x, index=index.expand(2, -1))
            torch.testing.assert_close(out[:, cell.flatten()], alone.at(part).branch(x), atol=1e-5, rtol=1e-4)


def test_reduced_tokens_attend_beyond_windows():
    tokens = tokens_of(GRID, window=3)
    index = torch.arange(0, 35, 2).expand(2, -1)
    x = tokens.x[:, ::2]
    windowed, whole = (attention(window=window) for window in (3, None))
    reduced = tokens.replace(x=x, index=index)
    torch.testing.assert_close(windowed.at(reduced).branch(x), whole.at(reduced).branch(x))
    # All tokens, but in another order.
    shuffled = tokens.replace(index=torch.randperm(35).expand(2, -1))
    torch.testing.assert_close(windowed.at(shuffled).branch(tokens.x), whole.at(shuffled).branch(tokens.x))
    at = windowed.at(tokens)
    torch.testing.assert_close(at.attend(*at.qkv(x, index)), whole.at(reduced).branch(x))


@pytest.mark.parametrize(
    'token_reduction',
    [
        dict(type='Random', layer=1, restore='last'),
        dict(type='ToMe', r=0.3),
        dict(type='TokenAdapter', layers=(1, 2)),
        dict(type='Expediting', layer=1),
    ],
    ids=str,
)
def test_windowed_backbones_reduce_tokens(token_reduction):
    model = eva02(**WINDOWED, token_reduction=token_reduction)
    assert [layer.attn.window for layer in model.layers] == [3, None, 3]
    with torch.no_grad():
        for size in ((64, 96), (80, 112)):
            (out,) = model(torch.rand(2, 3, *size))
            assert out.shape == (2, 32, size[0] // 16, size[1] // 16) and out.isfinite().all()


def test_windowed_backbone_is_its_layers_one_by_one():
    model, x = eva02(**WINDOWED), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        tokens = model._embed(x)
        for layer in model.layers:
            y = tokens.x + layer.attn.at(tokens).branch(layer.norm1(tokens.x))
            tokens = tokens.replace(x=y + layer.ffn.branch(layer.norm2(y)))
        expected = model.norm(tokens.x).transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(model(x)[0], expected)
        whole = eva02(with_cls_token=False)
        assert not torch.allclose(whole(x)[0], expected, atol=0.1)


def test_weights_start_as_published():
    torch.manual_seed(0)
    model = EVA02(embed_dims=192, num_layers=2, num_heads=3)
    model.init_weights()
    for i, layer in enumerate(model.layers, 1):
        for weight, std in (
            (layer.attn.in_proj.weight, 0.02),
            (layer.attn.proj.weight, 0.02 / math.sqrt(2 * i)),
            (layer.ffn.fc1.weight, 0.02),
            (layer.ffn.fc2.weight, 0.02 / math.sqrt(2 * i)),
        ):
            assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert not layer.attn.q_bias.any() and not layer.ffn.fc1.bias.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)


def test_drop_path_rises_or_is_given_for_each_layer():
    def rates(rate):
        return [layer.attn.branch_dropout.drop_prob for layer in EVA02(**SMALL, drop_path_rate=rate).layers]

    assert rates(0.4) == pytest.approx([0, 0.2, 0.4]) and rates([0.1, 0.3, 0]) == [0.1, 0.3, 0]


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(num_heads=3), 'embed_dims=32 and num_heads=3'),
        (dict(num_heads=16), 'as many channels, a multiple of 4'),
        (dict(out_indices=(0, 3)), r'out_indices=\(0, 3\) names layer 3'),
        (dict(window_layers=[5], window_size=2), r'window_layers=\(5,\) names layer 5'),
        (dict(window_layers=(0,), with_cls_token=False), 'window_size=None must be the side'),
        (dict(window_layers=(0,), window_size=4), 'the class token, which is in no window'),
        (dict(drop_path_rate=[0.1, 0.2]), 'give one for each or'),
        (dict(drop_path_rate=1.0), 'drop_path_rate=1.0'),
        (dict(attn_backend='fast'), "attn_backend='fast'"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_when_built(settings, said):
    with pytest.raises(UserError, match=said):
        EVA02(**{**SMALL, **settings})


@pytest.mark.parametrize('size', [(64, 96), (57, 131)], ids=str)
@pytest.mark.parametrize('kwargs', [{}, WINDOWED], ids=['whole', 'windowed'])
def test_every_multiply_add_is_counted(size, kwargs):
    count = flops.count_flops(eva02(**kwargs), torch.zeros(1, 3, *size))
    assert count.unsupported == {}
    rows, columns = (-(-pixels // 16) for pixels in size)
    hidden, tokens = int(32 * 8 / 3), rows * columns + (not kwargs)
    linear = 3 * tokens * (4 * 32 * 32 + 3 * 32 * hidden)
    assert count.by_operator['linear'] == linear
    windows = -(-rows // 3) * -(-columns // 3)
    within = 2 * windows * 9 * 9 * 32
    attended = 2 * within + 2 * tokens**2 * 32 if kwargs else 3 * 2 * tokens**2 * 32
    assert count.by_operator['scaled_dot_product_attention'] == attended
