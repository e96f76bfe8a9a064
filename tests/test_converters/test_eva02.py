"""EVA-02 and Cropr: converted weights in ``mmtr.EVA02``, against forward passes in timm's layouts."""

from pathlib import Path

import eva02_layout
import pytest
import torch
from eva02_layout import HEADS, HIDDEN, eva02, eva02_state
from eva02_layout import cropr as official_cropr
from mmengine.config import Config
from mmseg.registry import MODELS
from official_layouts import CLASSES, DIM, LAYERS, PATCH, SIZE, linear, linear_shapes, maps, norm_shapes

from mmtr import UserError
from mmtr.converters import cropr
from mmtr.converters import eva02 as source
from mmtr.models.backbones import EVA02
from mmtr.ops.resize import resize_patches, resize_positions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def settings_of(notes, part='backbone.'):
    return {key[len(part) :]: value for key, value in notes.settings.items() if key.startswith(part)}


@pytest.mark.parametrize('separate, clip', [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize('norm', ['fc_norm', 'norm'])
def test_both_layouts_give_the_outputs_of_timm(separate, clip, norm, image):
    state = eva02_state(separate, norm=norm, clip=clip)
    converted, notes = source.convert(state)
    settings = settings_of(notes)
    assert (settings['ffn_norm'], settings['attn_norm'], settings['num_heads']) == (separate, clip, HEADS)
    model = EVA02(img_size=SIZE, patch_size=PATCH, **settings).eval()
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], maps(eva02(image, state)), rtol=0, atol=1e-5)


@pytest.mark.parametrize('separate', [False, True])
@pytest.mark.parametrize('dim, heads', [(128, 4), (96, 2), (96, 8)])
def test_other_heads_are_those_that_are_given(separate, dim, heads, image, monkeypatch):
    for name, value in dict(DIM=dim, HEADS=heads, HIDDEN=int(dim * 8 / 3)).items():
        monkeypatch.setattr(eva02_layout, name, value)
    state = eva02_state(separate)
    converted, notes = source.convert(state, num_heads=heads)
    assert notes.settings['backbone.num_heads'] == heads and notes.fits is None
    model = EVA02(img_size=SIZE, patch_size=PATCH, **settings_of(notes)).eval()
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], maps(eva02(image, state)), rtol=0, atol=1e-5)
    if dim == 96:
        with pytest.raises(UserError, match='has 96 channels, which are no heads of 64, .* give .* --num-heads'):
            source.convert(eva02_state(separate))
    for wrong in (0, 5, dim // 2):
        with pytest.raises(UserError, match=f'--num-heads {wrong} does not fit the {dim} channels'):
            source.convert(eva02_state(separate), num_heads=wrong)


def test_both_layouts_have_the_same_keys_but_for_the_inner_norm():
    fused, separate = (source.convert(eva02_state(separate))[0] for separate in (False, True))
    assert separate.keys() - fused.keys() == {
        f'layers.{i}.ffn.norm.{kind}' for i in range(LAYERS) for kind in ('weight', 'bias')
    }
    assert not fused.keys() - separate.keys()


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda state: state.pop('blocks.1.attn.q_proj.bias'), 'lacks keys .* blocks.1.attn.q_proj.bias'),
        (lambda state: state.update({'blocks.0.attn.k_proj.bias': torch.zeros(DIM)}), 'blocks.0.attn.k_proj.bias'),
        (lambda state: state.update({'blocks.0.gamma_1': torch.zeros(DIM)}), 'keys that a timm EVA-02 does not have'),
        (lambda state: state.update(pos_embed=torch.zeros(1, 16, DIM)), 'no class token and a square'),
        (lambda state: state.update({'blocks.1.mlp.fc1_x.weight': torch.zeros(3, DIM)}), 'fc1_x.weight.* has shape'),
    ],
)
def test_another_model_is_refused(change, said):
    state = eva02_state(True)
    change(state)
    with pytest.raises(UserError, match=said):
        source.convert(state)


def test_pretrained_weights_fit_another_patch_and_grid(tmp_path):
    converted, notes = source.convert(eva02_state(True))
    torch.save(dict(state_dict=converted), tmp_path / 'eva02.pth')
    settings = settings_of(notes)
    model = EVA02(img_size=(60, 80), patch_size=10, pretrained=str(tmp_path / 'eva02.pth'), **settings)
    model.init_weights()
    loaded = model.state_dict()
    for key, value in converted.items():
        if key == 'pos_embed':
            value = resize_positions(value, (4, 4), (6, 8), 1)
        if key == 'patch_embed.projection.weight':
            value = resize_patches(value, (10, 10))
        assert torch.equal(loaded[key], value), key
    without = EVA02(
        img_size=SIZE, patch_size=PATCH, final_norm=False, pretrained=str(tmp_path / 'eva02.pth'), **settings
    )
    without.init_weights()
    other = EVA02(
        img_size=SIZE, patch_size=PATCH, pretrained=str(tmp_path / 'eva02.pth'), **{**settings, 'ffn_norm': False}
    )
    with pytest.raises(UserError, match='differs in 4 weights .layers.0.ffn.norm.bias'):
        other.init_weights()


def cropr_state(pruned, **options):
    state = eva02_state(True, layers=4)
    if pruned:
        generator = torch.Generator().manual_seed(2)
        shapes = {
            'cross_attn.queries': (1, 16, DIM),
            **norm_shapes('head.norm', DIM),
            **linear_shapes('head.head', DIM, CLASSES),
        }
        if options.get('mlp', True):
            shapes.update(
                {
                    **norm_shapes('cross_attn.mlp_norm', DIM),
                    **linear_shapes('cross_attn.mlp.fc1', DIM, 4 * DIM),
                    **linear_shapes('cross_attn.mlp.fc2', 4 * DIM, DIM),
                }
            )
        if options.get('projections'):
            shapes.update({f'cross_attn.{name}.weight': (DIM, DIM) for name in 'qkv'})
        # One after each layer but the last two.
        state.update(
            {
                f'cropr.{i}.{key}': torch.randn(*shape, generator=generator)
                for i in range(2)
                for key, shape in shapes.items()
            }
        )
    return state


@pytest.mark.parametrize('r', [(), (3, 2)], ids=['unpruned', 'pruned'])
def test_cropr_gives_the_outputs_of_the_release(r, image):
    state = cropr_state(bool(r))
    tokens = torch.cat([official_cropr(image[i : i + 1], state, 4, r) for i in range(2)])
    expected = maps(linear(tokens, state, 'head'))
    converted, notes = cropr.convert(state)
    reduction = dict(type='Cropr', r=list(r), num_classes=CLASSES) if r else None
    head = dict(
        type='FCNHead',
        in_channels=DIM,
        channels=DIM,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        **settings_of(notes, 'decode_head.'),
    )
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            decode_head=head,
            backbone=dict(type='mmtr.EVA02', token_reduction=reduction, **settings_of(notes)),
        )
    )
    model.eval()
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image, mode='tensor'), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'options, settings',
    [(dict(), {}), (dict(mlp=False), dict(mlp_ratio=0.0)), (dict(projections=True), dict(projections=('q', 'k', 'v')))],
)
def test_cropr_modules_go_to_the_reducer(options, settings):
    state = cropr_state(True, **options)
    converted, notes = cropr.convert(state)
    at = 'backbone.token_reducer.heads.layer_01.'
    assert torch.equal(converted[f'{at}queries'], state['cropr.1.cross_attn.queries'][0])
    assert torch.equal(converted[f'{at}head.1.weight'], state['cropr.1.head.head.weight'])
    assert settings_of(notes, 'backbone.token_reduction.') == settings
    plain = cropr.convert(cropr_state(False))[0]
    assert len(converted) - len(plain) == sum(key.startswith('cropr.') for key in state)


def test_an_unknown_key_of_a_cropr_module_is_refused():
    state = {**cropr_state(True), 'cropr.0.cross_attn.temperature': torch.ones(1)}
    with pytest.raises(UserError, match='cropr.0.cross_attn.temperature'):
        cropr.convert(state)


def test_cropr_weights_lie_under_model_or_alone(tmp_path):
    for content in (dict(model=cropr_state(False), epoch=63), cropr_state(False)):
        torch.save(content, tmp_path / 'checkpoint.pth')
        assert cropr.read(tmp_path / 'checkpoint.pth')[0].keys() == cropr_state(False).keys()


@pytest.mark.parametrize('pruned, name', [(False, ''), (True, 'cropr_')])
def test_a_checkpoint_of_the_released_size_names_its_config(pruned, name):
    state, large = {}, {DIM: 1024, 3 * DIM: 3072, 4 * DIM: 4096, HIDDEN: 2730}
    for key, value in cropr_state(pruned).items():
        shape = [large.get(n, n) for n in value.shape]
        for i in range(24 if key.startswith('blocks.0.') else 0 if key.startswith('blocks.') else 1):
            state[key.replace('blocks.0.', f'blocks.{i}.')] = torch.empty(shape, device='meta')
    fits = cropr.convert(state)[1].fits
    assert fits == f'segmenter_eva02-l_{name}ade20k.py' and (ROOT / 'configs' / fits).exists()


def test_settings_of_the_released_size_are_those_of_the_config():
    shapes = {'patch_embed.projection.weight': (1024, 3, 14, 14)}
    for i in range(24):
        shapes[f'layers.{i}.ffn.fc2.weight'] = (1024, 2730)
        shapes[f'layers.{i}.ffn.norm.weight'] = (2730,)
    notes = source.notes_of({key: torch.empty(shape, device='meta') for key, shape in shapes.items()}, 'eva02')
    assert notes.fits == 'segmenter_eva02-l_*.py'
    backbone = Config.fromfile(ROOT / 'configs/segmenter_eva02-l_ade20k.py').model.backbone
    built = {'in_channels': 3, 'ffn_norm': True, 'attn_norm': False}
    assert {key: backbone.get(key, built.get(key)) for key in settings_of(notes)} == settings_of(notes)
