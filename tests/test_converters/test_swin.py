"""Official Swin weights, against a forward pass written in the official layout."""

import importlib.util
from pathlib import Path

import pytest
import torch
from official_layouts import draw, gelu, layer_norm, linear, linear_shapes, norm_shapes

from mmtr.converters import swin
from mmtr.errors import UserError
from mmtr.models.backbones import SwinTransformer

DIM, DEPTHS, HEADS, WINDOW = 8, (2, 2), (2, 4), 4
TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'convert_checkpoint.py'


def official(window=WINDOW, classes=10):
    """The ``state_dict`` of a release, buffers included."""
    shapes = {
        **linear_shapes('patch_embed.proj', 3, DIM),
        'patch_embed.proj.weight': (DIM, 3, 4, 4),
        **norm_shapes('patch_embed.norm', DIM),
        **norm_shapes('norm', 2 * DIM),
        **linear_shapes('head', 2 * DIM, classes),
        **norm_shapes('layers.0.downsample.norm', 4 * DIM),
        'layers.0.downsample.reduction.weight': (2 * DIM, 4 * DIM),
    }
    for i, depth in enumerate(DEPTHS):
        dim = DIM * 2**i
        for j in range(depth):
            name = f'layers.{i}.blocks.{j}'
            shapes |= {
                **norm_shapes(f'{name}.norm1', dim),
                f'{name}.attn.relative_position_bias_table': ((2 * window - 1) ** 2, HEADS[i]),
                **linear_shapes(f'{name}.attn.qkv', dim, 3 * dim),
                **linear_shapes(f'{name}.attn.proj', dim, dim),
                **norm_shapes(f'{name}.norm2', dim),
                **linear_shapes(f'{name}.mlp.fc1', dim, 4 * dim),
                **linear_shapes(f'{name}.mlp.fc2', 4 * dim, dim),
            }
    # Larger than usual, so that positions and attention show in the output.
    state = {key: value * 6 if value.dim() > 1 else value for key, value in draw(shapes).items()}
    state['layers.0.blocks.1.attn_mask'] = torch.zeros(4, window**2, window**2)
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            key = f'layers.{i}.blocks.{j}.attn.relative_position_index'
            state[key] = torch.zeros(window**2, window**2, dtype=torch.long)
    return state


def release(image, state):
    """The maps of both stages of an image of 64x64 pixels without the norms of the outputs."""
    patches = image.unfold(1, 4, 4).unfold(2, 4, 4)
    x = torch.einsum('chwij,dcij->hwd', patches, state['patch_embed.proj.weight']) + state['patch_embed.proj.bias']
    x = layer_norm(x, state, 'patch_embed.norm', 1e-5)
    maps = []
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            name, shift = f'layers.{i}.blocks.{j}', WINDOW // 2 * (j % 2)
            y = layer_norm(x, state, f'{name}.norm1', 1e-5)
            # Windows cut by hand: the official mask keeps what the shift wraps around apart.
            out, cuts = torch.zeros_like(y), [0, *range(shift or WINDOW, len(x), WINDOW), len(x)]
            for top, bottom in zip(cuts, cuts[1:]):
                for left, right in zip(cuts, cuts[1:]):
                    part = y[top:bottom, left:right]
                    out[top:bottom, left:right] = attend_part(part, state, f'{name}.attn', HEADS[i])
            x = x + out
            y = gelu(linear(layer_norm(x, state, f'{name}.norm2', 1e-5), state, f'{name}.mlp.fc1'))
            x = x + linear(y, state, f'{name}.mlp.fc2')
        maps.append(x)
        if i == 0:
            x = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = layer_norm(x, state, 'layers.0.downsample.norm', 1e-5) @ state['layers.0.downsample.reduction.weight'].T
    return maps


def attend_part(part, state, name, heads):
    """Attention of a part (h, w, C) of a window, which takes its biases from the window's table."""
    h, w, _ = part.shape
    table = state[f'{name}.relative_position_bias_table'].view(2 * WINDOW - 1, 2 * WINDOW - 1, heads)
    places = [(a, b) for a in range(h) for b in range(w)]
    bias = torch.stack(
        [torch.stack([table[a - c + WINDOW - 1, b - d + WINDOW - 1] for c, d in places]) for a, b in places]
    )
    out = []
    qkv = linear(part.flatten(0, 1), state, f'{name}.qkv').chunk(3, -1)
    for head, (q, k, v) in enumerate(zip(*(t.chunk(heads, -1) for t in qkv))):
        out.append((q @ k.T / q.shape[-1] ** 0.5 + bias[..., head]).softmax(-1) @ v)
    return linear(torch.cat(out, -1), state, f'{name}.proj').view(h, w, -1)


def backbone(**kwargs):
    return SwinTransformer(
        **{
            **dict(
                embed_dims=DIM, depths=DEPTHS, num_heads=HEADS, window_size=WINDOW, strides=(4, 2), out_indices=(0, 1)
            ),
            **kwargs,
        }
    ).eval()


@pytest.mark.parametrize('classes', [1000, 21841])
def test_outputs_are_those_of_the_release(classes):
    state = official(classes=classes)
    converted, notes = swin.convert(state)
    model = backbone()
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected and all('norm0' in key or 'norm1.' in key or 'index' in key for key in missing)
    image = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for out, expected in zip(model(image.unsqueeze(0)), release(image, state)):
            expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:])  # of fresh norm0 and norm1
            torch.testing.assert_close(out[0].permute(1, 2, 0), expected, atol=1e-4, rtol=1e-4)
    assert notes.settings == {
        'backbone.embed_dims': DIM,
        'backbone.patch_size': 4,
        'backbone.in_channels': 3,
        'backbone.depths': DEPTHS,
        'backbone.num_heads': HEADS,
        'backbone.window_size': WINDOW,
    }


def test_weights_are_mmdets(tmp_path):
    swin_converter = pytest.importorskip('mmdet.models.backbones.swin').swin_converter
    state = official()
    theirs = {key.removeprefix('backbone.'): value for key, value in swin_converter(state).items()}
    converted, _ = swin.convert(state)
    assert converted.keys() == {
        key for key in theirs if not key.startswith('norm.') and 'index' not in key and 'mask' not in key
    }
    assert all(torch.equal(value, theirs[key]) for key, value in converted.items())


@pytest.mark.parametrize('window', [4, 7])
def test_official_weights_load_directly(tmp_path, window):
    state = official()
    torch.save(dict(model=state), tmp_path / 'swin.pth')
    model = backbone(window_size=window, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    model.init_weights()
    converted, _ = swin.convert(state)
    for key, value in converted.items():
        if window == 4 or 'table' not in key:
            assert torch.equal(model.state_dict()[key], value)
    table = model.stages[0].blocks[0].attn.w_msa.relative_position_bias_table.detach()
    assert table.shape == ((2 * window - 1) ** 2, 2)
    own = converted['stages.0.blocks.0.attn.w_msa.relative_position_bias_table']
    # The middle, the entry of a token itself, is the same at any size.
    torch.testing.assert_close(table[len(table) // 2], own[len(own) // 2])


def test_file_is_converted_by_the_tool(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    torch.save(dict(model=official()), tmp_path / 'in.pth')
    tool.main(['--source', 'swin', str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')])
    assert f'model.backbone.init_cfg.checkpoint={tmp_path / "out.pth"}' in capsys.readouterr().out
    model = backbone(pretrained=str(tmp_path / 'out.pth'))
    model.init_weights()
    converted, _ = swin.convert(official())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in converted.items())


def test_what_is_no_swin_is_refused(tmp_path):
    state = official()
    needed = [key for key in state if not swin.DROPPED.match(key)]
    for key in needed:
        with pytest.raises(UserError, match=key.replace('.', r'\.')):
            swin.convert({k: v for k, v in state.items() if k != key})
    with pytest.raises(UserError, match='logit_scale'):  # a Swin V2
        swin.convert({**state, 'layers.0.blocks.0.attn.logit_scale': torch.ones(2)})
    torch.save(state, tmp_path / 'bare.pth')
    with pytest.raises(UserError, match="which keeps its weights under 'model'"):
        swin.read(tmp_path / 'bare.pth')
