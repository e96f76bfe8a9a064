"""DINOv3: converted weights of each layout in ``mmtr.DINOv3``, against its forward pass written out."""

import pytest
import torch
from dinov3_layout import DIM, PATCH, forward, huggingface_state, release_state, timm_state

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.analysis.shapes import ShapesOnly
from mmtr.converters import dinov3 as source
from mmtr.models.backbones import DINOv2, DINOv3

#: Settings of each size; parameters; G multiply-adds at 224 and 640 (shared figures of the release).
SIZES = {
    's': ((384, 12, 'mlp', 1536), 21_596_160, (4.7, 58.3)),
    's+': ((384, 12, 'swiglu', 1536), 28_692_480, (6.1, 69.7)),
    'b': ((768, 12, 'mlp', 3072), 85_659_648, (17.9, 184.8)),
    'l': ((1024, 24, 'mlp', 4096), 303_128_576, (62.8, 612.6)),
    'h+': ((1280, 32, 'swiglu', 5120), 840_591_360, (172.1, 1559.0)),
}
LAYOUTS = dict(
    release=lambda state: state,
    huggingface=huggingface_state,
    in_memory=lambda state: huggingface_state(state, 'model.layer'),
    timm=timm_state,
)


def built(state, **kwargs):
    converted, notes = source.convert(state)
    settings = {name.removeprefix('backbone.'): value for name, value in notes.settings.items()}
    model = DINOv3(**settings, **kwargs).eval()
    model.load_state_dict(converted, strict=True)
    return model, notes


def picture(height=5 * PATCH, width=3 * PATCH):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def maps(tokens, grid, first=5):
    return tokens[:, first:].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_the_outputs_of_the_release(layout, gated):
    state = release_state(gated)
    model, notes = built(LAYOUTS[layout](state))
    assert any('DINOv3 License' in remark for remark in notes.remarks)
    with torch.no_grad():
        torch.testing.assert_close(model(picture())[0], maps(forward(state, picture()), (5, 3)), atol=1e-5, rtol=1e-5)


def test_files_without_registers_or_biases():
    state = release_state(registers=0)
    for name in state:
        if name.endswith('qkv.bias'):
            state[name] = torch.zeros_like(state[name])
    for given in (state, timm_state(state, biases=False)):
        model, _ = built(given)
        with torch.no_grad():
            expected = maps(forward(state, picture()), (5, 3), 1)
            torch.testing.assert_close(model(picture())[0], expected, atol=1e-5, rtol=1e-5)


def test_positions_are_scaled_in_training_alone(monkeypatch):
    state = release_state()
    model, _ = built(state, rope_rescale=2.0)
    monkeypatch.setattr(torch, 'rand', lambda *args, **kwargs: torch.tensor(0.8))
    with torch.no_grad():
        for training, factor in ((False, 1.0), (True, 2 ** (2 * 0.8 - 1))):
            own = model.train(training)(picture())[0]
            torch.testing.assert_close(own, maps(forward(state, picture(), factor), (5, 3)), atol=1e-5, rtol=1e-5)


def test_the_backward_pass_sees_the_factor_of_the_forward_pass():
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model, _ = built(release_state(), rope_rescale=2.0, with_cp=with_cp)
        torch.manual_seed(1)
        model.train()(picture())[0].square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def of_size(size, num_layers=None):
    dims, layers, ffn, hidden = SIZES[size][0]
    settings = dict(embed_dims=dims, num_layers=num_layers or layers, num_heads=dims // 64, ffn=ffn, hidden=hidden)
    return DINOv3(**settings).eval()


@pytest.mark.parametrize('size', SIZES)
def test_parameters_are_the_published_ones(size):
    with torch.device('meta'):
        model = of_size(size)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(SIZES[size][1], rel=1e-3)


@pytest.mark.parametrize('size', SIZES)
def test_multiply_adds_are_the_published_ones(size):
    # All layers cost the same, and those of H+ are 3 GB.
    (_, layers, *_), _, published = SIZES[size]
    models = [of_size(size, num_layers) for num_layers in (1, 2)]
    for side, expected in zip((224, 640), published):
        with ShapesOnly():
            one, two = (count_flops(model, torch.empty(1, 3, side, side)).total for model in models)
        assert (one + (layers - 1) * (two - one)) / 1e9 == pytest.approx(expected, rel=0.01)


def test_a_file_with_a_position_table_is_refused(tmp_path):
    shape = dict(img_size=4 * PATCH, patch_size=PATCH, embed_dims=DIM, num_layers=1, num_heads=2, num_registers=4)
    torch.save(DINOv2(**shape).state_dict(), tmp_path / 'dinov2.pth')
    with pytest.raises(UserError, match='is not of this DINOv3: it differs in'):
        DINOv3(**{**shape, 'img_size': 6 * PATCH}, pretrained=str(tmp_path / 'dinov2.pth')).init_weights()


def test_what_is_no_dinov3_is_refused():
    state = release_state()
    with pytest.raises(UserError, match='lacks .* a DINOv3'):
        source.convert({name: value for name, value in state.items() if not name.startswith('blocks.1.norm1')})
    with pytest.raises(UserError, match='holds keys that a DINOv3 does not have: head.weight'):
        source.convert({**state, 'head.weight': torch.zeros(3, DIM)})
