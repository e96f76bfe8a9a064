"""ViTDet against a slow forward written from the paper: windows one by one, a dense bias pair by pair."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmtr import UserError
from mmtr.analysis import flops
from mmtr.models.backbones import ViTDet
from mmtr.models.backbones.vitdet.layer import DecomposedAttention
from mmtr.tokens import Tokens

SMALL = dict(img_size=(64, 96), pretrain_img_size=48, embed_dims=16, num_layers=3, num_heads=2)
WINDOWED = dict(window_size=3, global_attn_indexes=[1])
EXACT = dict(atol=1e-5, rtol=1e-5)


def vitdet(**kwargs):
    torch.manual_seed(0)
    model = ViTDet(**{**SMALL, **WINDOWED, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(height=80, width=112, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def stretched(table, count):
    """The table of the differences of ``count`` rows, or columns, between the two entries that are nearest."""
    rows = []
    for i in range(2 * count - 1):
        at = min(max((i + 0.5) * len(table) / (2 * count - 1) - 0.5, 0), len(table) - 1)
        low, high = math.floor(at), math.ceil(at)
        rows.append(table[low] + (table[high] - table[low]) * (at - low))
    return torch.stack(rows)


def attend(x, places, attn, grid):
    """Attention of tokens (N, C) of one image at ``places``, (row, column) each, in ``grid``."""
    q, k, v = (x @ attn.qkv.weight.T + attn.qkv.bias).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    tables = [stretched(table, n) for table, n in zip((attn.rel_pos_h, attn.rel_pos_w), grid)]
    bias = torch.zeros(attn.num_heads, len(x), len(x))
    for i, here in enumerate(places):
        for j, there in enumerate(places):
            for table, n, a, b in zip(tables, grid, here, there):
                bias[:, i, j] += q[:, i] @ table[a - b + n - 1]
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1) @ attn.proj.weight.T + attn.proj.bias


def raster(height, width):
    return [(row, column) for row in range(height) for column in range(width)]


def slow_attention(x, attn):
    """Attention of normed tokens (H, W, C) of one image: of all, or of windows padded with zeros."""
    height, width, channels = x.shape
    side = attn.window
    if side is None:
        return attend(x.flatten(0, 1), raster(height, width), attn, (height, width)).view(x.shape)
    padded = torch.zeros(-(-height // side) * side, -(-width // side) * side, channels)
    padded[:height, :width] = x
    for row in range(0, height, side):
        for column in range(0, width, side):
            window = padded[row : row + side, column : column + side]
            out = attend(window.flatten(0, 1), raster(side, side), attn, (side, side))
            padded[row : row + side, column : column + side] = out.view(side, side, channels)
    return padded[:height, :width]


def slow_forward(model, image):
    kernel = model.patch_embed.projection
    height, width = (-(-n // 16) * 16 for n in image.shape[1:])
    image = F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
    x = F.conv2d(image[None], kernel.weight, kernel.bias, 16)[0].permute(1, 2, 0)
    table = model.pos_embed[:, 1:].view(1, 3, 3, -1).permute(0, 3, 1, 2)
    if x.shape[:2] != (3, 3):
        table = F.interpolate(table, x.shape[:2], mode='bicubic', align_corners=False)
    x = x + table[0].permute(1, 2, 0)
    for layer in model.layers:
        x = x + slow_attention(layer.norm1(x), layer.attn)
        y = F.gelu(layer.norm2(x) @ layer.ffn.fc1.weight.T + layer.ffn.fc1.bias)
        x = x + y @ layer.ffn.fc2.weight.T + layer.ffn.fc2.bias
    return x.permute(2, 0, 1)


@torch.no_grad()
@pytest.mark.parametrize('backend', ['auto', 'math'])
@pytest.mark.parametrize(
    'size', [(64, 96), (96, 144), (48, 48), (80, 112), (70, 35)], ids=['training', 'windows', 'table', 'pads', 'any']
)
def test_backbone_is_the_slow_forward(size, backend):
    model, batch = vitdet(attn_backend=backend), images(*size)
    (out,) = model(batch)
    for image, found in zip(batch, out):
        torch.testing.assert_close(found, slow_forward(model, image), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(image[None])[0][0], found, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize('window', [None, 3])
def test_kept_tokens_attend_to_all_by_rows_and_columns(window):
    torch.manual_seed(0)
    grid = (5, 7)
    attn = DecomposedAttention(16, 2, grid if window is None else (window, window), window=window)
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    index = torch.stack([torch.randperm(35)[:9] for _ in range(2)])
    x = torch.randn(2, 9, 16)
    expected = torch.stack([attend(y, [divmod(int(n), 7) for n in at], attn, grid) for y, at in zip(x, index)])
    close = torch.testing.assert_close
    close(attn.at(Tokens(x, grid, index=index)).branch(x), expected, **EXACT)
    # The same tokens, left out within the attention alone: of all tokens, and of some that were kept before.
    at = attn.at(Tokens(torch.zeros(2, 35, 16), grid))
    close(at.attend(*at.qkv(x, index), None, index), expected, **EXACT)
    more = torch.cat([torch.zeros_like(index[:, :3]), index], 1)
    at, kept = attn.at(Tokens(torch.zeros(2, 12, 16), grid, index=more)), torch.arange(3, 12).expand(2, -1)
    close(at.attend(*at.qkv(x, kept), None, kept), expected, **EXACT)


@torch.no_grad()
def test_received_attention_ranks_by_positions_too():
    model = vitdet(
        global_attn_indexes=[0, 1, 2], token_reduction=dict(type='TokenAdapter', layers=(1, 3), score='attn')
    )
    model.layers[0].attn.proj.weight.zero_()  # its attention scores the tokens, and changes none
    scored = model(images())[0]
    model.layers[0].attn.rel_pos_h.mul_(-5)
    assert not torch.allclose(model(images())[0], scored)


@pytest.mark.parametrize('reduction', [None, dict(type='ToMe', r=0.3)], ids=str)
def test_checkpointing_gives_the_same_gradients(reduction):
    found = []
    for with_cp in (False, True):
        model = vitdet(with_cp=with_cp, token_reduction=reduction).train()
        model(images())[0].square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
        # Every weight learns, the tables too; the first position is that of a class token, which is not there.
        assert all(grad is not None and grad.abs().sum() > 0 for grad in found[-1])
        assert not model.pos_embed.grad[:, 0].any() and model.pos_embed.grad[:, 1:].all()
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_lora_is_merged_where_windows_are_padded():
    model = vitdet(peft=dict(type='LoRA', rank=2, targets=['qkv', 'proj', 'fc1', 'fc2']))
    merged = vitdet()
    (out,) = model(images())
    assert not torch.allclose(merged(images())[0], out, atol=0.1)
    merged.load_state_dict(model.peft.merged_state_dict(model))
    torch.testing.assert_close(merged(images())[0], out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'depth, whole', [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (3, [0, 1, 2]), (5, [1, 2, 3, 4])]
)
def test_the_last_layer_of_each_quarter_is_global(depth, whole):
    model = ViTDet(**{**SMALL, 'num_layers': depth})
    assert [i for i, layer in enumerate(model.layers) if layer.attn.window is None] == whole
    assert {len(layer.attn.rel_pos_h) for layer in model.layers if layer.attn.window} <= {27}
    assert model.layers[-1].attn.rel_pos_h.shape == (7, 8) and model.layers[-1].attn.rel_pos_w.shape == (11, 8)


def test_weights_start_as_published():
    torch.manual_seed(0)
    model = ViTDet(**{**SMALL, 'embed_dims': 192})
    model.init_weights()
    for layer in model.layers:
        for linear in (layer.attn.qkv, layer.attn.proj, layer.ffn.fc1, layer.ffn.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05) and not linear.bias.any()
        assert not layer.attn.rel_pos_h.any() and not layer.attn.rel_pos_w.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
def test_a_pretrained_file_is_resized_to_the_model(tmp_path):
    state = vitdet().state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'vitdet.pth')
    other = dict(img_size=(128, 48), pretrain_img_size=64, window_size=5, pretrained=str(tmp_path / 'vitdet.pth'))
    model = ViTDet(**{**SMALL, **WINDOWED, **other})
    model.init_weights()
    for i, grid in ((0, (5, 5)), (1, (8, 3))):
        for name, n in zip(('rel_pos_h', 'rel_pos_w'), grid):
            key = f'layers.{i}.attn.{name}'
            torch.testing.assert_close(model.state_dict()[key], stretched(state[key], n))
    table = state['pos_embed'][:, 1:].view(1, 3, 3, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, (4, 4), mode='bicubic', align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed, torch.cat([state['pos_embed'][:, :1], table], 1))
    assert torch.equal(model.layers[2].attn.qkv.weight, state['layers.2.attn.qkv.weight'])
    del state['layers.1.attn.rel_pos_w']
    torch.save(dict(state_dict=state), tmp_path / 'vitdet.pth')
    with pytest.raises(UserError, match='differs in 1 weights .layers.1.attn.rel_pos_w'):
        model.init_weights()


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(num_heads=3), 'embed_dims=16 and num_heads=3'),
        (dict(global_attn_indexes=[3]), r'global_attn_indexes=\(3,\) names layer 3'),
        (dict(pretrain_img_size=8), 'pretrain_img_size=.8, 8. is smaller than one patch'),
        (dict(drop_path_rate=[0.1, 0.2]), 'give one for each or'),
        (dict(token_reduction=dict(type='EViT')), 'reads the class token, and this backbone has none'),
        (dict(token_reduction=dict(type='SegFormerPlusPlus')), 'with a bias of positions cannot'),
        (dict(window_size=0), 'window_size=0'),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_when_built(settings, said):
    with pytest.raises(UserError, match=said):
        vitdet(**settings)


def test_every_multiply_add_of_attention_is_counted():
    count = flops.count_flops(vitdet(), torch.zeros(1, 3, 80, 112))
    assert count.unsupported == {}
    # Heads of 8 channels with 3 + 3 or 5 + 7 more for positions, rounded up to multiples of 8.
    within, whole = 2 * 6 * 9 * 9 * 2 * 16, 2 * 35 * 35 * 2 * 24
    assert count.by_operator['scaled_dot_product_attention'] == 2 * within + whole
