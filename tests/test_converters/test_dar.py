"""The official DAR checkpoints: what was tuned, joined with the DINOv2 beside it."""

import pytest
import torch
import torch.nn.functional as F
from dinov2_layout import DINOv2
from mmengine.config import Config
from mmseg.registry import MODELS
from official_layouts import DIM, LAYERS, PATCH, draw, linear_shapes
from torch import nn

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
        shapes.update(
            {
                **linear_shapes(f'{at}.adapter.down_proj', dim, ADAPTER),
                **linear_shapes(f'{at}.adapter.up_proj', ADAPTER, dim),
                **conv(f'{at}.compensator.down_conv1', dim, HIDDEN),
                **conv(f'{at}.compensator.down_conv2.0', 1, HIDDEN, 3),
                **conv(f'{at}.compensator.down_conv2.1', HIDDEN, HIDDEN),
                **conv(f'{at}.compensator.up_conv', HIDDEN, dim),
                f'{at}.scale': (),
                **conv(f'{at}.token_mask_gen.conv', dim, 1, 3),
            }
        )
    for name, n_in in (('convs.0', dim), ('fusion_conv', CHANNELS)):
        shapes[f'decode_head.{name}.conv.weight'] = (CHANNELS, n_in, 1, 1)
        for key in ('weight', 'bias', 'running_mean', 'running_var'):
            shapes[f'decode_head.{name}.bn.{key}'] = (CHANNELS,)
    shapes.update(conv('decode_head.conv_seg', CHANNELS, outputs))
    if distilled:
        for side in 'st':
            shapes.update(
                {**linear_shapes(f'd_head_{side}.mlp.0', dim, dim), **linear_shapes(f'd_head_{side}.mlp.2', dim, dim)}
            )
        shapes['backbone_t.mask_token'] = (1, dim)
    state = draw(shapes)
    for name in ('convs.0', 'fusion_conv'):
        state[f'decode_head.{name}.bn.running_var'] += 1
        state[f'decode_head.{name}.bn.num_batches_tracked'] = torch.tensor(9)
    return state


class TunedBlock(nn.Module):
    """A block of the release in evaluation, of one image: the FFN sees chosen tokens, the branch all as they are."""

    def __init__(self, block, state, grid, chosen):
        super().__init__()
        self.block, self.state, self.grid, self.chosen = block, state, grid, chosen

    def conv(self, x, name, groups=1):
        weight = self.state[f'{name}.weight']
        return F.conv2d(x, weight, self.state[f'{name}.bias'], padding=weight.shape[-1] // 2, groups=groups)

    def linear(self, x, name):
        return x @ self.state[f'{name}.weight'].T + self.state[f'{name}.bias']

    def forward(self, x):
        block, patches = self.block, slice(1, None)
        x = x + block.ls1(block.attn(block.norm1(x)))
        grid = x[:, patches].transpose(1, 2).unflatten(2, self.grid)
        chosen = torch.cat(
            [torch.ones(1, dtype=torch.bool), self.conv(grid, 'token_mask_gen.conv').sigmoid().flatten() > 0.5]
        )
        self.chosen.append(chosen)
        branch = self.linear(self.linear(x, 'adapter.down_proj').clamp(min=0), 'adapter.up_proj')
        light = self.conv(self.conv(grid, 'compensator.down_conv1'), 'compensator.down_conv2.0', HIDDEN)
        light = F.gelu(self.conv(light, 'compensator.down_conv2.1'))
        branch[:, patches] += self.conv(light, 'compensator.up_conv').flatten(2).transpose(1, 2)
        out = x + self.state['scale'] * branch
        out[:, chosen] += block.ls2(block.mlp(block.norm2(x[:, chosen])))
        return out


def test_model_is_the_official_one():
    official, state = DINOv2(antialias=True, offset=0.0), tuned_state(outputs=3)
    converted, notes = dar.convert(state, official.state_dict())
    cfg = Config(
        dict(
            model=dict(
                type='mmtr.EncoderDecoder',
                backbone=dict(type='mmtr.DINOv2'),
                decode_head=dict(type='mmtr.SimpleDecoder', in_channels=DIM),
            )
        )
    )
    cfg.merge_from_dict(
        {
            f'model.{key}': value
            for key, value in notes.settings.items()
            if key.startswith(('backbone.', 'decode_head.'))
        }
    )
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(converted)
    chosen = []
    for i, block in enumerate(official.blocks):
        at = f'backbone.blocks.{i}.'
        official.blocks[i] = TunedBlock(
            block, {key.removeprefix(at): value for key, value in state.items() if key.startswith(at)}, (5, 4), chosen
        )

    def block(x, name):
        x = torch.einsum('oc,bchw->bohw', state[f'decode_head.{name}.conv.weight'][:, :, 0, 0], x)
        bn = {
            key: state[f'decode_head.{name}.bn.{key}'].view(1, -1, 1, 1)
            for key in ('running_mean', 'running_var', 'weight', 'bias')
        }
        return ((x - bn['running_mean']) / (bn['running_var'] + 1e-5).sqrt() * bn['weight'] + bn['bias']).clamp(min=0)

    image = torch.randn(1, 3, 5 * PATCH, 4 * PATCH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = torch.nn.functional.interpolate(block(official(image)[-1], 'convs.0'), scale_factor=4, mode='bilinear')
        x = torch.einsum('oc,bchw->bohw', state['decode_head.conv_seg.weight'][:, :, 0, 0], block(x, 'fusion_conv'))
        expected = x + state['decode_head.conv_seg.bias'].view(1, -1, 1, 1)
        assert all(0.2 < each.float().mean() < 0.9 for each in chosen)
        torch.testing.assert_close(model(image, mode='tensor'), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('distilled', [False, True])
def test_all_that_was_tuned_is_kept_and_what_only_trains_is_not(distilled):
    state = tuned_state(distilled)
    converted, notes = dar.convert(state, DINOv2().state_dict())
    tuned = {key: value for key, value in converted.items() if key.startswith(('backbone.peft.', 'backbone.token_red'))}
    assert len(tuned) == LAYERS * 15
    assert tuned['backbone.peft.scales.1.weight'] == state['backbone.blocks.1.scale']
    for old, new in [
        ('compensator.down_conv2.1', 'peft.compensators.1.mix'),
        ('adapter.up_proj', 'peft.adapters.1.up'),
        ('token_mask_gen.conv', 'token_reducer.selectors.1'),
    ]:
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
