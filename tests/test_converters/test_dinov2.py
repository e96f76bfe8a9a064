"""DINOv2: converted weights in ``mmtr.DINOv2``, against a forward pass in the official layout."""

from pathlib import Path

import pytest
import torch
from dinov2_layout import GRID, HEADS, DINOv2, interpolated
from mmengine.config import Config
from official_layouts import DIM, LAYERS, PATCH

from mmtr import UserError
from mmtr.converters import dinov2 as source
from mmtr.models import backbones
from mmtr.ops.resize import resize_patches, resize_positions

ROOT = Path(__file__).parents[2]


def ours(official, **kwargs):
    converted, notes = source.convert(official.state_dict())
    settings = {key.removeprefix('backbone.'): value for key, value in notes.settings.items()}
    model = backbones.DINOv2(**{**settings, **kwargs}).eval()
    model.load_state_dict(converted, strict=True)
    return model


@pytest.mark.parametrize('registers', [0, 4])
@pytest.mark.parametrize('size', [(32, 32), (40, 72), (24, 16), (16, 64)], ids=str)
def test_converted_weights_give_the_official_outputs(registers, size):
    official = DINOv2(registers)
    model = ours(official, out_indices=(0, -1))
    assert model.layers[0].attn.num_heads == HEADS and model.num_prefix == 1 + registers
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(list(model(x)), list(official(x)), rtol=0, atol=1e-5)


def test_the_giant_has_a_gated_ffn():
    official = DINOv2(4, gated=True)
    model, x = ours(official, out_indices=(0, -1)), torch.randn(2, 3, 40, 72)
    with torch.no_grad():
        torch.testing.assert_close(list(model(x)), list(official(x)), rtol=0, atol=1e-5)
    # As wide as in dinov2_vitg14.
    (layer,) = backbones.DINOv2(embed_dims=1536, num_layers=1, num_heads=24, ffn='swiglu').layers
    assert tuple(layer.ffn.fc1.weight.shape) == (2 * 4096, 1536)


@pytest.mark.parametrize('antialias, offset', [(False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)])
def test_either_interpolation_is_a_key(antialias, offset):
    official = DINOv2(0, antialias=antialias, offset=offset)
    x = torch.randn(1, 3, 24, 72, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (out,) = ours(official, interpolate_antialias=antialias, interpolate_offset=offset)(x)
        torch.testing.assert_close(out, official(x)[-1], rtol=0, atol=1e-5)
        (other,) = ours(official, interpolate_antialias=not antialias, interpolate_offset=offset)(x)
    assert not torch.allclose(other, out, atol=1e-3)


@pytest.mark.parametrize(
    'old, new',
    [
        ((6, 6), (6, 6)),
        ((6, 6), (4, 9)),
        ((6, 6), (9, 4)),
        ((6, 6), (13, 7)),
        ((6, 6), (2, 3)),
        ((4, 9), (6, 6)),
        ((37, 37), (32, 64)),
        ((16, 16), (37, 37)),
    ],
    ids=str,
)
@pytest.mark.parametrize('antialias, offset', [(False, 0.1), (True, 0.0), (False, 0.0), (True, 0.1)])
def test_positions_are_interpolated_as_written_out(old, new, antialias, offset):
    # Values of 1 would show how torch rounds coordinates to float32: 1.5e-5 of 37 patches, 2e-14 in float64.
    table = 0.1 * torch.randn(1, 1 + old[0] * old[1], 3, generator=torch.Generator().manual_seed(0))
    found = resize_positions(table, old, new, 1, antialias, offset)
    torch.testing.assert_close(found, interpolated(table, old, new, antialias, offset), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda state: state.pop('blocks.1.ls2.gamma'), 'lacks keys .* blocks.1.ls2.gamma'),
        (lambda state: state.pop('blocks.0.mlp.fc1.weight'), "lacks 'blocks.0.mlp.fc1.weight'"),
        (lambda state: state.update({'blocks.0.attn.q_norm.weight': torch.zeros(3)}), 'keys that an official DINOv2'),
        (lambda state: state.update({'head.weight': torch.zeros(3)}), 'keys that .* does not have: head.weight'),
        (lambda state: state.update(pos_embed=torch.zeros(1, 16, DIM)), 'no class token and a square'),
        (lambda state: state.update(register_tokens=torch.zeros(1, 4, DIM + 1)), 'register_tokens.* has shape'),
        (lambda state: state.update({'blocks.1.ls1.gamma': torch.zeros(3)}), 'ls1.gamma.* has shape'),
    ],
)
def test_another_model_is_refused(change, said):
    state = DINOv2(4).state_dict()
    change(state)
    with pytest.raises(UserError, match=said):
        source.convert(state)


def test_every_key_is_needed_and_the_source_is_left_as_it_was():
    state = DINOv2(4).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    for key in state.keys() - {'mask_token', 'register_tokens'}:
        with pytest.raises(UserError, match=key.replace('.', r'\.')):
            source.convert({k: v for k, v in state.items() if k != key})
    halves, _ = source.convert({key: value.half() for key, value in state.items()})
    assert {value.dtype for value in halves.values()} == {torch.float32}
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_width_that_is_no_heads_of_64_is_refused():
    state = {
        key: torch.zeros([96 if n == DIM else n * 96 // DIM if n % DIM == 0 else n for n in value.shape])
        for key, value in DINOv2().state_dict().items()
    }
    with pytest.raises(UserError, match='96 channels, which are no heads of 64'):
        source.convert(state)


@pytest.mark.parametrize('registers', [0, 4])
def test_the_mask_token_is_left_behind_and_said(registers):
    official = DINOv2(registers)
    converted, notes = source.convert(official.state_dict())
    assert len(converted) == len(official.state_dict()) - 1
    assert notes.remarks[0].startswith('The mask token') and notes.settings['backbone.num_registers'] == registers
    del official.mask_token
    assert 'mask token' not in ''.join(source.convert(official.state_dict())[1].remarks)


def test_pretrained_weights_fit_another_patch_and_grid(tmp_path):
    official = DINOv2(4)
    converted, notes = source.convert(official.state_dict())
    torch.save(dict(state_dict=converted), tmp_path / 'dinov2.pth')
    settings = {key.removeprefix('backbone.'): value for key, value in notes.settings.items()}

    def build(**kwargs):
        model = backbones.DINOv2(**{**settings, 'pretrained': str(tmp_path / 'dinov2.pth'), **kwargs})
        model.init_weights()
        return model.state_dict()

    loaded = build(img_size=(60, 80), patch_size=10)
    for key, value in converted.items():
        if key == 'pos_embed':
            value = interpolated(value, GRID, (6, 8), True, 0.0)
        if key == 'patch_embed.projection.weight':
            value = resize_patches(value, (10, 10))
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=1e-5)
    assert not {'ln1.weight', 'ln1.bias'} & build(final_norm=False).keys()
    for kwargs, said in [
        (dict(num_registers=0), '1 weights .register_tokens.'),
        (dict(num_registers=2), '1 weights .register_tokens.'),
        (dict(num_layers=3), '14 weights .layers.2.attn.attn.in_proj_bias, '),
    ]:
        with pytest.raises(UserError, match=f'not of this DINOv2: it differs in {said}'):
            build(**kwargs)


def test_settings_of_the_released_base_are_those_of_the_config():
    shapes = dict(patch_embed=(768, 3, 14, 14), pos_embed=(1, 1370, 768))
    large = {DIM: 768, 3 * DIM: 2304, 4 * DIM: 3072}
    state = {}
    for key, value in DINOv2().state_dict().items():
        shape = [large.get(n, n) for n in value.shape]
        for name, known in shapes.items():
            shape = known if name in key and value.dim() > 1 else shape
        for i in range(12 if key.startswith('blocks.0.') else 0 if key.startswith('blocks.') else 1):
            state[key.replace('blocks.0.', f'blocks.{i}.')] = torch.empty(shape, device='meta')
    assert LAYERS < 12 and PATCH != 14
    notes = source.convert(state)[1]
    configs = [Config.fromfile(path) for path in (ROOT / 'configs').glob(notes.fits)]
    built = {'in_channels': 3, 'mlp_ratio': 4, 'num_registers': 0}
    assert configs
    for key, value in notes.settings.items():
        key = key.removeprefix('backbone.')
        assert {config.model.backbone.get(key, built.get(key)) for config in configs} == {value}, key
