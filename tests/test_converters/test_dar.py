"""The official DAR checkpoints: what was tuned, joined with the DINOv2 beside it."""

import pytest
import torch
from dinov2_layout import DINOv2
from mmseg.registry import MODELS
from official_layouts import DIM, LAYERS, draw, linear_shapes

from mmtr import UserError
from mmtr.converters import dar

ADAPTER, HIDDEN, CHANNELS = 6, 5, 7


def tuned_state(distilled=False, outputs=1, dim=DIM):
    """The file of the release; read off its modules, as no weights could be had."""

    def conv(name, n_in, n_out, side=1):
        return {f'{name}.weight': (n_out, n_in, side, side), f'{name}.bias': (n_out,)}

    shapes = {}
    for i in range(LAYERS):
        at = f'backbone.blocks.{i}'
        shapes.update({
            **linear_shapes(f'{at}.adapter.down_proj', dim, ADAPTER),
            **linear_shapes(f'{at}.adapter.up_proj', ADAPTER, dim),
            **conv(f'{at}.compensator.down_conv1', dim, HIDDEN),
            **conv(f'{at}.compensator.down_conv2.0', 1, HIDDEN, 3),
            **conv(f'{at}.compensator.down_conv2.1', HIDDEN, HIDDEN),
            **conv(f'{at}.compensator.up_conv', HIDDEN, dim),
            f'{at}.scale': (),
            **conv(f'{at}.token_mask_gen.conv', dim, 1, 3),
        })
    for name, n_in in (('convs.0', dim), ('fusion_conv', CHANNELS)):
        shapes[f'decode_head.{name}.conv.weight'] = (CHANNELS, n_in, 1, 1)
        for key in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'decode_head.{name}.bn.{key}'] = (CHANNELS,)
    shapes.update(conv('decode_head.conv_seg', CHANNELS, outputs))
    if distilled:
        for side in 'st':
            shapes.update({**linear_shapes(f'd_head_{side}.mlp.0', dim, dim),
                           **linear_shapes(f'd_head_{side}.mlp.2', dim, dim)})
        shapes['backbone_t.mask_token'] = (1, dim)
    state = draw(shapes)
    for name in ('convs.0', 'fusion_conv'):
        state[f'decode_head.{name}.bn.running_var'] += 1
        state[f'decode_head.{name}.bn.num_batches_tracked'] = torch.tensor(9)
    return state


def test_backbone_and_decoder_are_the_official_ones():
    official, state = DINOv2(), tuned_state(outputs=3)
    converted, notes = dar.convert(state, official.state_dict())
    settings = {part: {key.removeprefix(part): value for key, value in notes.settings.items()
                       if key.startswith(part) and key.removeprefix(part).count('.') == 0}
                for part in ('backbone.', 'decode_head.')}
    model = MODELS.build(dict(
        type='EncoderDecoder', backbone=dict(type='mmtr.DINOv2', **settings['backbone.']),
        decode_head=dict(type='mmtr.SimpleDecoder', in_channels=DIM, **settings['decode_head.']))).eval()
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not missing and all(key.startswith(('backbone.peft.', 'backbone.token_reducer.')) for key in unexpected)

    def block(x, name):
        x = torch.einsum('oc,bchw->bohw', state[f'decode_head.{name}.conv.weight'][:, :, 0, 0], x)
        bn = {key: state[f'decode_head.{name}.bn.{key}'].view(1, -1, 1, 1)
              for key in ('running_mean', 'running_var', 'weight', 'bias')}
        return ((x - bn['running_mean']) / (bn['running_var'] + 1e-5).sqrt() * bn['weight'] + bn['bias']).clamp(min=0)

    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = torch.nn.functional.interpolate(block(official(image)[-1], 'convs.0'), scale_factor=4, mode='bilinear')
        x = torch.einsum('oc,bchw->bohw', state['decode_head.conv_seg.weight'][:, :, 0, 0], block(x, 'fusion_conv'))
        expected = x + state['decode_head.conv_seg.bias'].view(1, -1, 1, 1)
        torch.testing.assert_close(model(image, mode='tensor'), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('distilled', [False, True])
def test_all_that_was_tuned_is_kept_and_what_only_trains_is_not(distilled):
    state = tuned_state(distilled)
    converted, notes = dar.convert(state, DINOv2().state_dict())
    tuned = {key: value for key, value in converted.items() if key.startswith(('backbone.peft.', 'backbone.token_red'))}
    assert len(tuned) == LAYERS * 15
    assert tuned['backbone.peft.scales.1.weight'] == state['backbone.blocks.1.scale']
    for old, new in [('compensator.down_conv2.1', 'peft.compensators.1.mix'), ('adapter.up_proj', 'peft.adapters.1.up'),
                     ('token_mask_gen.conv', 'token_reducer.selectors.1')]:
        expected = state[f'backbone.blocks.1.{old}.weight']
        found = tuned[f'backbone.{new}.weight']
        assert torch.equal(found, expected.flatten(1) if 'mix' in new else expected)
    assert not any('teacher' in key or 'd_head' in key or 'backbone_t' in key for key in converted)
    settings = notes.settings
    assert (settings['backbone.peft.bottleneck'], settings['backbone.peft.compensator']) == (ADAPTER, HIDDEN)
    assert (settings['decode_head.num_classes'], settings['decode_head.out_channels']) == (2, 1)
    assert settings['backbone.interpolate_antialias'] and settings['backbone.interpolate_offset'] == 0


def test_another_model_is_refused():
    base = DINOv2().state_dict()
    for key in tuned_state():
        state = {k: v for k, v in tuned_state().items() if k != key}
        with pytest.raises(UserError, match=key.replace('.', r'\.')):
            dar.convert(state, base)
    with pytest.raises(UserError, match='adapter_layer_norm'):
        dar.convert({**tuned_state(), 'backbone.blocks.0.adapter.adapter_layer_norm.weight': torch.ones(DIM)}, base)
    with pytest.raises(UserError, match=f'2 layers of {DIM} channels; 2 layers of 64 were tuned'):
        dar.convert(tuned_state(dim=64), base)


def test_the_pretrained_file_lies_beside_it(tmp_path):
    path = tmp_path / 'dinov2_b_dar_duts.pth'
    torch.save(tuned_state(dim=768), path)
    with pytest.raises(UserError, match='only what was tuned: put the DINOv2 .* as dinov2_vitb14_pretrain.pth'):
        dar.read(path)
    torch.save(DINOv2().state_dict(), tmp_path / 'dinov2_vitb14_pretrain.pth')
    state, base = dar.read(path)
    assert state.keys() == tuned_state().keys() and base.keys() == DINOv2().state_dict().keys()
    torch.save(DINOv2().state_dict(), path)
    with pytest.raises(UserError, match='not an official DAR checkpoint'):
        dar.read(path)
