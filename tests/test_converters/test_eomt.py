"""EoMT of its release and of Hugging Face: converted weights in our models, against a forward pass in its layout."""

import pytest
import torch
from eomt_layout import CLASSES, GRID, QUERIES, QUERY_LAYERS, EoMT, hugging_face_state, release_state
from mmdet.datasets import ADE20KPanopticDataset
from mmengine.config import ConfigDict
from mmseg.datasets import ADE20KDataset
from official_layouts import DIM, HEADS, LAYERS, PATCH, draw, linear_shapes, norm_shapes

from mmtr import UserError
from mmtr.converters import dinov3
from mmtr.converters import eomt as source
from mmtr.registry import MODELS

ENCODER = ('embeddings.', 'layers.', 'layernorm.')


def state_of(layout, **kwargs):
    model = EoMT(**kwargs)
    return model, dict(release=release_state, hf=hugging_face_state)[layout](model)


def cfg_of(notes, **model):
    """The model that the notes ask for."""
    cfg = ConfigDict(**model)
    for key, value in notes.settings.items():
        part, name = key.split('.')
        cfg[part][name] = value
    return cfg


@pytest.mark.parametrize('layout', ['release', 'hf'])
def test_classes_and_masks_are_those_of_the_release(layout):
    model, state = state_of(layout)
    weights, notes = source.convert(state)
    cfg = cfg_of(notes, backbone=dict(type='mmtr.DINOv2'), panoptic_head=dict(type='mmtr.EoMTHead'))
    assert cfg.panoptic_head.num_query_layers == QUERY_LAYERS and cfg.panoptic_head.num_queries == QUERIES
    assert (cfg.panoptic_head.num_things_classes, cfg.panoptic_head.num_stuff_classes) == (CLASSES, 0)
    padded = dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=PATCH)
    ours = MODELS.build(dict(type='mmtr.EoMT', data_preprocessor=padded, **cfg)).eval()
    ours.load_state_dict(weights, strict=True)
    image = torch.rand(2, 3, *(PATCH * side for side in GRID)) * 255
    with torch.no_grad():
        found = ours.panoptic_head.predict(ours.extract_feat(image), None)
    for one, other in zip(found, model((image - ours.mean) / ours.std)):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize('layout', ['release', 'hf'])
def test_semantic_models(layout):
    model, state = state_of(layout, queries=100, classes=19)
    weights, notes = source.convert(state)
    cfg = cfg_of(notes, backbone=dict(type='mmtr.DINOv2'), decode_head=dict(type='mmtr.EoMTSegHead'))
    ours = MODELS.build(dict(type='mmtr.EncoderDecoder', test_cfg=dict(mode='whole'), **cfg)).eval()
    ours.load_state_dict(weights, strict=True)
    image = torch.randn(1, 3, *(PATCH * side for side in GRID))
    with torch.no_grad():
        classes, masks = model(image)
        masks = torch.nn.functional.interpolate(masks, image.shape[2:], mode='bilinear')
        expected = torch.einsum('bqk,bqhw->bkhw', classes.softmax(-1)[..., :-1], masks.sigmoid())
        torch.testing.assert_close(ours.encode_decode(image, []), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('layout', ['release', 'hf'])
def test_the_gated_ffn_of_the_giant(layout):
    state = state_of(layout)[1]
    for key in [key for key in state if '.mlp.' in key]:
        value = state.pop(key)
        if layout == 'hf':
            key = key.replace('fc1', 'weights_in').replace('fc2', 'weights_out')
        # Half as many channels, behind gate and value, as there are in gate and value.
        state[key] = value[:, : 2 * DIM] if value.shape == (DIM, 4 * DIM) else value
    weights, notes = source.convert(state)
    assert notes.settings['backbone.ffn'] == 'swiglu'
    shapes = {key: value.shape for key, value in weights.items() if '.ffn.fc' in key}
    assert shapes['backbone.layers.0.ffn.fc1.weight'] == (4 * DIM, DIM)
    assert shapes['backbone.layers.0.ffn.fc2.weight'] == (DIM, 2 * DIM)


def test_classes_of_ade20k_have_the_order_of_mmdet():
    model, state = state_of('release', queries=200, classes=150)
    weights, notes = source.convert(state)
    head = {key: notes.settings[f'panoptic_head.{key}'] for key in ('num_things_classes', 'num_stuff_classes')}
    assert head == dict(num_things_classes=100, num_stuff_classes=50)
    rows = [model.class_head.weight.tolist().index(row) for row in weights['panoptic_head.class_embed.weight'].tolist()]
    assert torch.equal(weights['panoptic_head.class_embed.bias'], model.class_head.bias[rows])
    assert rows[-1] == 150
    # mmdet and mmseg have other words for a few classes.
    found = [ADE20KDataset.METAINFO['classes'][row].split(',')[0].strip() for row in rows[:-1]]
    expected = [name.split(',')[0] for name in ADE20KPanopticDataset.METAINFO['classes']]
    differing = [(one, other) for one, other in zip(found, expected) if one != other]
    assert len(differing) < 10 and not {one for one, _ in differing} & {*expected}, differing


@pytest.mark.parametrize(
    'queries, classes, fits',
    [
        (200, 80, 'coco-instance-640'),
        (200, 133, 'coco-panoptic-640'),
        (200, 150, 'ade20k-panoptic-640'),
        (100, 150, 'ade20k-semantic'),
        (100, 19, 'cityscapes-semantic'),
        (200, 7, None),
    ],
)
def test_queries_and_classes_tell_the_data_set(queries, classes, fits, monkeypatch):
    monkeypatch.setattr(source, 'SIZES', {(DIM, LAYERS): ('l', HEADS)})
    notes = source.convert(state_of('release', queries=queries, classes=classes)[1])[1]
    assert notes.fits == (fits and f'eomt_dinov2-l_{fits}.py')


def test_a_network_that_was_compiled_and_a_file_of_lightning(tmp_path):
    _, state = state_of('release')
    compiled = {key.replace('network.', 'network._orig_mod.'): value for key, value in state.items()}
    torch.save(dict(state_dict=compiled, epoch=3), tmp_path / 'a.ckpt')
    weights, expected = source.convert(*source.read(tmp_path / 'a.ckpt'))[0], source.convert(state)[0]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())


@pytest.mark.parametrize('layout', ['release', 'hf'])
def test_what_is_missing_or_unknown_is_named(layout):
    _, state = state_of(layout)
    kept = ('attn_mask_probs', 'criterion', 'pixel_mean')
    for key in state:
        rest = {name: value for name, value in state.items() if name != key}
        if any(name in key for name in kept):
            assert source.convert(rest)[0].keys() == source.convert(state)[0].keys()
            continue
        with pytest.raises(UserError, match='lacks'):
            source.convert(rest)
    for key in ('network.encoder.backbone.head.weight', 'network.upscale.0.conv3.weight'):
        with pytest.raises(UserError, match='does not have: '):
            source.convert({**state, key: torch.ones(3)})


def dinov3_state(layers=2, dim=DIM, seed=0):
    """A pretrained DINOv3 in Hugging Face's layout."""
    shapes = {
        'embeddings.cls_token': (1, 1, dim),
        'embeddings.register_tokens': (1, 4, dim),
        'embeddings.mask_token': (1, 1, dim),
        'embeddings.patch_embeddings.weight': (dim, 3, 16, 16),
        'embeddings.patch_embeddings.bias': (dim,),
        **norm_shapes('norm', dim),
    }
    for i in range(layers):
        at = f'layer.{i}'
        for name in 'qvo':
            shapes |= linear_shapes(f'{at}.attention.{name}_proj', dim, dim)
        shapes |= {f'{at}.attention.k_proj.weight': (dim, dim), **norm_shapes(f'{at}.norm1', dim)}
        shapes |= {f'{at}.layer_scale{n}.lambda1': (dim,) for n in (1, 2)} | norm_shapes(f'{at}.norm2', dim)
        shapes |= linear_shapes(f'{at}.mlp.up_proj', dim, 4 * dim) | linear_shapes(f'{at}.mlp.down_proj', 4 * dim, dim)
    return draw(shapes, seed)


def on_dinov3(delta=False):
    """A release's model on DINOv3, whole or as the difference from ``dinov3_state()``; and the same of Hugging Face."""
    model, base = EoMT(), dinov3_state()
    change = {key: 0.01 * torch.randn(value.shape) for key, value in base.items() if 'mask_token' not in key}
    whole = {key: base[key] + value for key, value in change.items()}
    head = {key: value for key, value in release_state(model).items() if '.encoder.backbone.' not in key}
    names = {'embeddings.': 'patch_embed.', 'layer.': 'blocks.', 'norm.': 'norm.'}
    release = {
        f'network.encoder.backbone.{names[old]}{key.removeprefix(old)}': value
        for key, value in (change if delta else whole).items()
        for old in names
        if key.startswith(old)
    }
    hugging_face = {key: value for key, value in hugging_face_state(model).items() if not key.startswith(ENCODER)}
    names = {'layer.': 'layers.', 'norm.': 'layernorm.', 'embeddings.': 'embeddings.'}
    hugging_face |= {
        f'{names[old]}{key.removeprefix(old)}': v for key, v in whole.items() for old in names if key.startswith(old)
    }
    return {**head, **release}, hugging_face, base


def test_a_difference_from_a_dinov3_and_the_whole_model_give_the_same():
    whole, hugging_face, base = on_dinov3()
    (expected, notes), (found, _) = source.convert(hugging_face), source.convert(on_dinov3(delta=True)[0], base)
    assert any('DINOv3 License' in remark for remark in notes.remarks)
    assert notes.settings['backbone.embed_dims'] == DIM and 'decode_head.num_classes' not in notes.settings
    for each in (found, source.convert(whole)[0]):
        assert each.keys() == expected.keys()
        assert all(torch.allclose(each[key], value, atol=1e-6) for key, value in expected.items())
    pretrained = dinov3.convert(base)[0]
    assert {key.removeprefix('backbone.') for key in expected if key.startswith('backbone.')} == pretrained.keys()


def test_a_base_that_is_missing_needless_or_of_another_size_is_refused():
    whole, hugging_face, base = on_dinov3()
    delta = on_dinov3(delta=True)[0]
    with pytest.raises(UserError, match='holds the difference .* of 128 channels and 2 layers: give .* --base'):
        source.convert(delta)
    for other in (dinov3_state(layers=3), dinov3_state(dim=64)):
        with pytest.raises(UserError, match='--base is a DINOv3 of another size: .* 128 channels and 2 layers'):
            source.convert(delta, other)
    for state in (whole, hugging_face, state_of('release')[1], state_of('hf')[1]):
        with pytest.raises(UserError, match='this one is whole: leave it out'):
            source.convert(state, base)
