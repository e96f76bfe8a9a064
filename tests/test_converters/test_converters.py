"""Converted weights in the stock modules, against forward passes in the layout of each source."""

import numpy as np
import pytest
import torch
from mmseg.models import EncoderDecoder  # noqa: F401  registers the stock modules
from mmseg.registry import MODELS
from official_layouts import (
    DIM,
    HEADS,
    PATCH,
    PATCHES,
    SIZE,
    augreg_state,
    augreg_vit,
    block,
    draw,
    layer_norm,
    linear,
    linear_state,
    maps,
    mask_state,
    variant,
    vit,
    vit_shapes,
)

from mmtr import UserError
from mmtr.converters import augreg_npz, segmenter, timm_vit


@pytest.fixture
def image():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def build(settings, head=None):
    """The stock backbone or segmentor that ``settings`` describe, in eval mode."""
    cfg = dict(backbone=dict(type='VisionTransformer', img_size=SIZE, norm_cfg=dict(type='LN')), decode_head=head or {})
    for key, value in settings.items():
        part, _, key = key.partition('.')
        if part not in cfg:
            continue
        at = cfg[part]
        *parents, last = key.split('.')
        for name in parents:
            at = at[name]
        at[last] = value
    model = MODELS.build(cfg['backbone'] if head is None else dict(type='EncoderDecoder', **cfg))
    # The stock ViT's train() and so its eval() return None.
    model.eval()
    return model


def test_segmenter_mask_head_gives_the_outputs_of_the_release(image):
    state = mask_state()
    x = linear(vit(image, state, 1e-5, 'encoder.'), state, 'decoder.proj_dec')
    x = torch.cat((x, state['decoder.cls_emb'].expand(len(x), -1, -1)), 1)
    for i in range(2):
        x = block(x, state, f'decoder.blocks.{i}', DIM // 64, 1e-5)
    x = layer_norm(x, state, 'decoder.decoder_norm', 1e-5)
    patches, classes = (x[:, :PATCHES] @ state['decoder.proj_patch'], x[:, PATCHES:] @ state['decoder.proj_classes'])
    patches, classes = (t / t.norm(dim=-1, keepdim=True) for t in (patches, classes))
    expected = maps(layer_norm(patches @ classes.transpose(1, 2), state, 'decoder.mask_norm', 1e-5))

    converted, notes = segmenter.convert(state, variant())
    head = dict(type='SegmenterMaskTransformerHead', in_channels=DIM, channels=DIM, embed_dims=DIM, dropout_ratio=0.0)
    model = build(notes.settings, head)
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image, mode='tensor'), expected, rtol=0, atol=1e-5)


def test_segmenter_linear_head_gives_the_outputs_of_the_release(image):
    state = linear_state()
    expected = maps(linear(vit(image, state, 1e-5, 'encoder.'), state, 'decoder.head'))
    converted, notes = segmenter.convert(state, variant())
    head = dict(type='FCNHead', in_channels=DIM, channels=DIM, num_convs=0, concat_input=False, dropout_ratio=0.0)
    model = build(notes.settings, head)
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image, mode='tensor'), expected, rtol=0, atol=1e-5)


def test_the_folded_patch_bias_is_exact_at_another_resolution():
    # Twice the width, so the position table is resized; a reference with the bias kept apart.
    state = linear_state()
    wide = torch.randn(1, 3, SIZE[0], 2 * SIZE[1])
    converted, notes = segmenter.convert(state, variant())
    model = build(notes.settings)
    model.load_state_dict({k[9:]: v for k, v in converted.items() if k.startswith('backbone.')}, strict=True)
    apart = build({**notes.settings, 'backbone.patch_bias': True})
    weights = {
        **model.state_dict(),
        'pos_embed': state['encoder.pos_embed'],
        'patch_embed.projection.bias': state['encoder.patch_embed.proj.bias'],
    }
    apart.load_state_dict(weights, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(wide), apart(wide), rtol=0, atol=1e-5)


def bilinear(table, old, new):
    """A position table (1, 1 + H * W, C) on another grid, place by place; the edge is repeated."""
    rows = [table[:, :1]]
    for y, x in ((y, x) for y in range(new[0]) for x in range(new[1])):
        at = [(n + 0.5) * a / b - 0.5 for n, a, b in zip((y, x), old, new)]
        total = 0
        for i in range(old[0] + 2):
            for j in range(old[1] + 2):
                share = max(1 - abs(at[0] - (i - 1)), 0) * max(1 - abs(at[1] - (j - 1)), 0)
                row, column = (min(max(n - 1, 0), a - 1) for n, a in zip((i, j), old))
                total = total + share * table[:, 1 + row * old[1] + column]
        rows.append(total.unsqueeze(1))
    return torch.cat(rows, 1)


@pytest.mark.parametrize('size', [(24, 56), (48, 32)])
def test_segmenter_is_exact_at_other_image_sizes(size):
    # rstrudel/segmenter, segm/model/utils.py: resize_pos_embed, mode='bilinear'.
    state, image = linear_state(), torch.randn(1, 3, *size)
    grid, own = (tuple(n // PATCH for n in s) for s in (size, SIZE))
    resized = {**state, 'encoder.pos_embed': bilinear(state['encoder.pos_embed'], own, grid)}
    logits = linear(vit(image, resized, 1e-5, 'encoder.'), state, 'decoder.head')
    expected = logits.transpose(1, 2).unflatten(2, grid)
    converted, notes = segmenter.convert(state, variant())
    assert 'interpolate_mode=bilinear as in the release' in notes.remarks[1]
    head = dict(type='FCNHead', in_channels=DIM, channels=DIM, num_convs=0, concat_input=False, dropout_ratio=0.0)
    distance = {}
    for mode in (notes.settings['backbone.interpolate_mode'], 'bicubic'):
        model = build({**notes.settings, 'backbone.interpolate_mode': mode}, head)
        model.load_state_dict(converted, strict=True)
        with torch.no_grad():
            distance[mode] = (model(image, mode='tensor') - expected).abs().max()
    assert distance['bilinear'] < 1e-5 < 1e-4 < distance['bicubic']


@pytest.mark.parametrize(
    'name, mean, std',
    [('vit', (127.5,) * 3, (127.5,) * 3), ('deit', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))],
)
def test_segmenter_normalisation_follows_the_variant(name, mean, std):
    said = variant()
    said['net_kwargs']['normalization'] = name
    notes = segmenter.convert(linear_state(), said)[1]
    assert notes.settings['data_preprocessor.mean'] == mean
    assert notes.settings['data_preprocessor.std'] == std
    assert notes.settings['test_cfg.stride'] == (24, 24)


@pytest.mark.parametrize(
    'dim, heads, layers, dataset, linear_head, fits',
    [
        (192, 3, 12, 'ade20k', False, 'segmenter_vit-t_ade20k.py'),
        (384, 6, 12, 'cityscapes', True, 'segmenter_vit-s_linear_cityscapes.py'),
        (768, 12, 12, 'pascal_context', False, 'segmenter_vit-b_pascal-context.py'),
        (1024, 16, 24, 'ade20k', False, 'segmenter_vit-l_ade20k.py'),
        (192, 6, 12, 'ade20k', False, None),
        (192, 3, 12, 'coco', False, None),
    ],
)
def test_the_config_that_fits_is_named(dim, heads, layers, dataset, linear_head, fits):
    settings = {
        'backbone.embed_dims': dim,
        'backbone.num_layers': layers,
        'backbone.patch_size': 16,
        'decode_head.num_classes': 150,
    }
    said = variant()
    said['net_kwargs'].update(
        d_model=dim, n_layers=layers, n_heads=heads, patch_size=16, n_cls=150, image_size=(32, 32)
    )
    said['dataset_kwargs']['dataset'] = dataset
    state = {'backbone.pos_embed': torch.zeros(1, 5, dim)}
    assert segmenter._notes(state, settings, said, linear_head).fits == fits
    said['dataset_kwargs'].update(patch_type='algm', threshold=0.9, selected_layers=(1, 5), merging_window_size=(2, 2))
    notes = segmenter._notes(state, settings, said, linear_head)
    if fits:
        assert notes.fits.replace('_algm', '') == fits.replace('_vit-l', '') and '_algm_' in notes.fits
    reduction = {key.rpartition('.')[2]: value for key, value in notes.settings.items() if 'token_reduction' in key}
    assert reduction == dict(type='ALGM', variant='released', threshold=0.9, local_layer=1, global_layer=5, window=2)
    for key, value in (('merging_window_size', (2, 4)), ('merging_window_size', None), ('selected_layers', (1,))):
        said['dataset_kwargs'] = dict(said['dataset_kwargs'], **{key: value})
        with pytest.raises(UserError, match='variant.yml (lacks|has merging windows of 2x4 patches)'):
            segmenter._notes(state, settings, said, linear_head)


def test_timm_gives_the_outputs_of_timm(image):
    state = draw(vit_shapes())
    converted, notes = timm_vit.convert(state)
    model = build({**notes.settings, 'backbone.num_heads': HEADS})
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], maps(vit(image, state, 1e-6)), rtol=0, atol=1e-5)
    assert 'number of heads' in ' '.join(notes.remarks)


def test_augreg_gives_the_outputs_of_jax(image, tmp_path):
    state = augreg_state()
    np.savez(tmp_path / 'vit.npz', **{key: value.numpy() for key, value in state.items()})
    converted, notes = augreg_npz.convert(*augreg_npz.read(tmp_path / 'vit.npz'))
    model = build(notes.settings)
    model.load_state_dict(converted, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], maps(augreg_vit(image, state)), rtol=0, atol=1e-5)
