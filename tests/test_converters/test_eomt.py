"""EoMT of its release and of Hugging Face: converted weights in our models, against a forward pass in its layout."""

import pytest
import torch
from eomt_layout import CLASSES, GRID, QUERIES, QUERY_LAYERS, EoMT, hugging_face_state, release_state
from mmdet.datasets import ADE20KPanopticDataset
from mmengine.config import ConfigDict
from mmseg.datasets import ADE20KDataset
from official_layouts import DIM, HEADS, LAYERS, PATCH

from mmtr import UserError
from mmtr.converters import eomt as source
from mmtr.registry import MODELS


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
    ours = MODELS.build(dict(type='mmtr.EoMT', data_preprocessor=dict(type='mmdet.DetDataPreprocessor'), **cfg)).eval()
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
