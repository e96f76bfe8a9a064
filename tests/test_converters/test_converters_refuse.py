"""What a conversion must not pass over in silence."""

import pytest
import torch
from classifier_layouts import TORCHVISION, encoder_state, timm_state
from official_layouts import DIM, HEADS, augreg_state, draw, linear_state, mask_state, variant, vit_shapes

from mmtr.converters import augreg_npz, mae, segmenter, swag, timm_vit, torchvision_vit
from mmtr.errors import UserError

SOURCES = {
    'segmenter mask': (lambda state: segmenter.convert(state, variant()), mask_state),
    'segmenter linear': (lambda state: segmenter.convert(state, variant()), linear_state),
    'timm': (timm_vit.convert, lambda: draw(vit_shapes())),
    'augreg': (augreg_npz.convert, augreg_state),
    'swag': (lambda state: swag.convert(state, HEADS), encoder_state),
    'torchvision': (lambda state: torchvision_vit.convert(state, HEADS), lambda: encoder_state(TORCHVISION)),
    'mae fine-tuned': (lambda state: mae.convert(state, HEADS), timm_state),
    'mae pretrained': (lambda state: mae.convert(state, HEADS), lambda: timm_state('norm', head=False)),
}
CLASSIFIERS = ('swag', 'torchvision', 'mae fine-tuned', 'mae pretrained')
DOCUMENTED = ('head.', 'encoder.head.', 'head/', 'pre_logits')


@pytest.mark.parametrize('source', SOURCES)
def test_every_key_is_needed_and_named_when_missing(source):
    convert, make = SOURCES[source]
    state = make()
    for key in state:
        rest = {k: v for k, v in state.items() if k != key}
        if key.startswith(DOCUMENTED) and source not in CLASSIFIERS:
            assert convert(rest)[0].keys() == convert(state)[0].keys()
        else:
            with pytest.raises(UserError, match=key.replace('.', r'\.') + '|decoder.cls_emb'):
                convert(rest)


@pytest.mark.parametrize('source', SOURCES)
def test_an_unknown_key_is_named(source):
    convert, make = SOURCES[source]
    with pytest.raises(UserError, match='blocks.0.ls1.gamma'):
        convert({**make(), 'blocks.0.ls1.gamma': torch.ones(DIM)})


@pytest.mark.parametrize('source', SOURCES)
def test_a_tensor_of_another_shape_is_named(source):
    convert, make = SOURCES[source]
    state = make()
    key = next(k for k in state if ('norm' in k.lower() or '.ln' in k) and k.endswith(('weight', 'scale')))
    with pytest.raises(UserError, match=f'{key}.*shape'):
        convert({**state, key: torch.ones(7)})


@pytest.mark.parametrize('source', SOURCES)
def test_the_source_is_left_as_it_was_and_half_precision_becomes_float32(source):
    convert, make = SOURCES[source]
    state = make()
    convert(state)
    assert all(torch.equal(state[key], value) for key, value in make().items())
    halves = {key: value.half() for key, value in state.items()}
    assert {value.dtype for value in convert(halves)[0].values()} == {torch.float32}


def test_a_position_table_without_class_token_is_refused():
    state = draw(vit_shapes())
    with pytest.raises(UserError, match='class token'):
        timm_vit.convert({**state, 'pos_embed': state['pos_embed'][:, 1:]})


def test_a_position_table_that_is_not_square_is_said():
    state = draw(vit_shapes())
    notes = timm_vit.convert({**state, 'pos_embed': torch.zeros(1, 13, DIM)})[1]
    assert 'not a square' in notes.remarks[0]


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(n_cls=150), 'another model'),
        (dict(n_layers=12), 'another model'),
        (dict(image_size=(64, 64)), 'image_size'),
        (dict(normalization='clip'), 'vit, deit'),
    ],
)
def test_a_variant_of_another_model_is_refused(change, words):
    said = variant()
    said['net_kwargs'].update(change)
    with pytest.raises(UserError, match=words):
        segmenter.convert(linear_state(), said)


@pytest.mark.parametrize('said', [None, {}, {'net_kwargs': {}}])
def test_a_variant_that_says_nothing_is_refused(said):
    with pytest.raises(UserError, match='variant.yml'):
        segmenter.convert(linear_state(), said)


def test_a_distilled_encoder_is_refused_in_words():
    with pytest.raises(UserError, match='distilled'):
        segmenter.convert({**linear_state(), 'encoder.dist_token': torch.zeros(1, 1, DIM)}, variant())
