"""Classifiers: names of weights, the config that is named, what is refused; tests/with_mmpretrain has the logits."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import releases
import torch
from classifier_layouts import FORMER_TORCHVISION, SWAG, TORCHVISION, encoder_state, timm_state
from official_layouts import CLASSES, DIM, HEADS, LAYERS, PATCH, PATCHES
from test_convert_checkpoint import convert, refused, tool

from mmtr import UserError
from mmtr.converters import SOURCES, cropr, mae, swag, torchvision_vit
from mmtr.converters.layouts import sources_of

RELEASED = {'b': (768, 12, 3072), 'l': (1024, 24, 4096), 'h': (1280, 32, 5120)}
READ_BY = dict(mae='mae or cropr', eva02='eva02 or cropr')
#: Layers of a block as mmpretrain names them.
BLOCK = ('ln1.', 'attn.qkv.', 'attn.proj.', 'ln2.', 'ffn.layers.0.0.', 'ffn.layers.1.')


def names_of_blocks(source, *theirs):
    """mmpretrain's names of all weights of blocks -> those of a release, whose layers are ``theirs`` in that order."""
    return {
        f'backbone.layers.{i}.{own}{kind}': f'{source}{i}.{other}{kind}'
        for i in range(LAYERS)
        for own, other in zip(BLOCK, theirs)
        for kind in ('weight', 'bias')
    }


@pytest.mark.parametrize('names', [SWAG, TORCHVISION, FORMER_TORCHVISION], ids=' '.join)
def test_names_of_swag_and_torchvision(names):
    state = encoder_state(names, pre_logits=24)
    source = swag if names == SWAG else torchvision_vit
    converted = source.convert(state, HEADS)[0]
    layer, fc1, fc2, head = names
    expected = {
        'backbone.cls_token': 'class_token',
        'backbone.patch_embed.projection.weight': 'conv_proj.weight',
        'backbone.patch_embed.projection.bias': 'conv_proj.bias',
        'backbone.pos_embed': 'encoder.pos_embedding',
        **names_of_blocks(
            f'encoder.layers.{layer}',
            'ln_1.',
            'self_attention.in_proj_',
            'self_attention.out_proj.',
            'ln_2.',
            f'{fc1}.',
            f'{fc2}.',
        ),
    }
    for kind in ('weight', 'bias'):
        expected[f'backbone.ln1.{kind}'] = f'encoder.ln.{kind}'
        expected[f'head.layers.pre_logits.{kind}'] = f'{head}.pre_logits.{kind}'
        expected[f'head.layers.head.{kind}'] = f'{head}.head.{kind}'
    assert converted.keys() == expected.keys() and len(expected) == len(state)
    for key, value in converted.items():
        assert torch.equal(value.flatten(), state[expected[key]].flatten()), key
    assert converted['backbone.pos_embed'].shape == (1, 1 + PATCHES, DIM)


@pytest.mark.parametrize('norm, own_norm', [('norm', 'ln1'), ('fc_norm', 'ln2')])
@pytest.mark.parametrize('decoder', [False, True])
def test_names_of_mae(norm, own_norm, decoder):
    state = timm_state(norm, decoder=decoder, head=not decoder)
    converted, notes = mae.convert(state, HEADS)
    expected = {
        'backbone.cls_token': 'cls_token',
        'backbone.pos_embed': 'pos_embed',
        'backbone.patch_embed.projection.weight': 'patch_embed.proj.weight',
        'backbone.patch_embed.projection.bias': 'patch_embed.proj.bias',
        **names_of_blocks('blocks.', 'norm1.', 'attn.qkv.', 'attn.proj.', 'norm2.', 'mlp.fc1.', 'mlp.fc2.'),
    }
    for kind in ('weight', 'bias'):
        expected[f'backbone.{own_norm}.{kind}'] = f'{norm}.{kind}'
        if not decoder:
            expected[f'head.fc.{kind}'] = f'head.{kind}'
    assert converted.keys() == expected.keys()
    assert all(torch.equal(value, state[expected[key]]) for key, value in converted.items())
    assert ('decoder' in ' '.join(notes.remarks)) == decoder


def released(state, letter, patch, side, classes=1000):
    """``state``, of two layers, at a released size, without memory; its last block stands for the rest."""
    dim, layers, hidden = RELEASED[letter]
    sizes = {DIM: dim, 3 * DIM: 3 * dim, 4 * DIM: 4 * dim, 256: hidden, PATCH: patch, CLASSES: classes}
    sizes[1 + PATCHES] = 1 + side**2
    grown = {}
    for key, value in state.items():
        shape = [sizes.get(n, n) for n in value.shape]
        for i in range(layers - 1 if re.search(r'(blocks|layer)[._]1\.', key) else 1):
            name = re.sub(r'(blocks\.|layer_)1\.', lambda m, i=i: f'{m[1]}{i + 1}.', key)
            grown[name] = torch.empty(shape, device='meta')
    return grown


@pytest.mark.parametrize(
    'letter, patch, side, classes, fits',
    [
        ('b', 16, 24, 1000, 'swag_vit-b_imagenet.py'),
        ('l', 16, 32, 1000, 'swag_vit-l_imagenet.py'),
        ('l', 16, 14, 1000, None),
        ('l', 16, 32, 365, None),
        ('h', 14, 37, 1000, None),
    ],
)
def test_the_config_of_swag(letter, patch, side, classes, fits):
    arch = dict(b='base', l='large', h='huge')[letter]
    for source, names in ((swag, SWAG), (torchvision_vit, TORCHVISION)):
        notes = source.convert(released(encoder_state(names), letter, patch, side, classes))[1]
        assert notes.fits == fits and notes.settings['backbone.arch'] == arch
        size = patch * side
        assert notes.settings['backbone.img_size'] == size
        assert f'{side}x{side} patches, of images of {size}x{size}' in notes.remarks[0]
    notes = swag.convert(released(encoder_state(head=False), letter, patch, side))[1]
    assert notes.fits is None and 'head.type' not in notes.settings


@pytest.mark.parametrize(
    'convert_, options, letter, fits, out_type',
    [
        (mae.convert, dict(), 'l', 'mae_vit-l_imagenet.py', 'avg_featmap'),
        (mae.convert, dict(norm='norm', head=False), 'b', 'mae_vit-b_imagenet.py', 'avg_featmap'),
        (mae.convert, dict(norm='norm'), 'l', None, 'cls_token'),
        (cropr.convert, dict(), 'l', 'mae_vit-l_imagenet.py', 'avg_all'),
        (cropr.convert, dict(norm='norm'), 'l', None, 'cls_token'),
    ],
)
def test_the_config_of_mae_and_unpruned_cropr(convert_, options, letter, fits, out_type):
    notes = convert_(released(timm_state(**options), letter, 16, 14))[1]
    assert notes.fits == fits and notes.settings['backbone.out_type'] == out_type
    assert notes.settings.get('backbone.final_norm', True) == (out_type == 'cls_token')


@pytest.mark.parametrize(
    'letter, modules, fits, fusion',
    [
        ('l', 22, 'mae_vit-l_cropr_imagenet.py', None),
        ('l', 23, 'mae_vit-l_cropr_imagenet.py', 'none'),
        ('b', 10, None, None),
    ],
)
def test_the_config_of_pruned_cropr(letter, modules, fits, fusion):
    notes = cropr.convert(released(timm_state(modules=modules), letter, 16, 14))[1]
    reduction = {key.rpartition('.')[2]: value for key, value in notes.settings.items() if 'token_reduction' in key}
    assert notes.fits == fits
    r = [9] + [8] * (modules - 1)
    expected = dict(type='Cropr', task='classification', num_classes=1000, r=r)
    if fusion:
        expected.update(fusion=fusion, layers=tuple(range(modules)))
    assert reduction == expected
    assert f'r={r} is the default of the release' in notes.remarks[-1]


def test_cropr_modules_that_are_not_the_releases():
    with pytest.raises(UserError, match='has 1 Cropr modules for 4 layers; .* has 2, or 3 without last layer fusion'):
        cropr.convert(timm_state(modules=1, layers=4), HEADS)
    state = timm_state(modules=2, layers=4)
    state['cropr.1.cross_attn.queries'] = torch.zeros(1, 2, DIM)
    with pytest.raises(UserError, match='have 2 queries; those of an official Cropr classifier have one'):
        cropr.convert(state, HEADS)
    with pytest.raises(UserError, match='cropr.0.cross_attn.temperature'):
        cropr.convert({**timm_state(modules=2, layers=4), 'cropr.0.cross_attn.temperature': torch.ones(1)}, HEADS)


@pytest.mark.parametrize('source, state', [(swag, encoder_state()), (mae, timm_state()), (cropr, timm_state())])
def test_the_number_of_heads_is_not_guessed(source, state):
    with pytest.raises(UserError, match=f'of {DIM} channels and {LAYERS} layers is none .*: give it, --num-heads'):
        source.convert(state)
    for wrong in (0, 3):
        with pytest.raises(UserError, match=f'--num-heads {wrong} does not divide the {DIM} channels'):
            source.convert(state, wrong)
    arch = source.convert(state, HEADS)[1].settings['backbone.arch']
    assert arch == dict(embed_dims=DIM, num_layers=LAYERS, num_heads=HEADS, feedforward_channels=256)


@pytest.mark.parametrize('source', SOURCES)
def test_every_source_is_told_by_its_layout(source, tmp_path):
    suffix = dict(augreg_npz='.npz', timm_vit='.safetensors').get(source, '.pth')
    path = tmp_path / ('folder' if source == 'segmenter' else f'file{suffix}')
    releases.write(source, path)
    if source == 'dar':
        path.with_name('dinov2_vit?14_pretrain.pth').rename(tmp_path / 'dinov2_vitb14_pretrain.pth')
        state = torch.load(path, weights_only=True)
    else:
        state = SOURCES[source].read(path)[0]
    assert source in sources_of(state)


@pytest.mark.parametrize(
    'given, true',
    [
        (given, true)
        for given in ('swag', 'torchvision_vit', 'mae', 'cropr', 'timm_vit', 'eva02', 'dinov2')
        for true in ('swag', 'torchvision_vit', 'mae', 'cropr', 'eva02', 'dinov2', 'dar', 'swin', 'maskdino')
        if given not in READ_BY.get(true, true).split(' or ')
    ],
)
def test_another_source_is_named(given, true, tmp_path, capsys):
    path, out = tmp_path / 'file.pth', tmp_path / 'out.pth'
    releases.write(true, path)
    said, kind = refused(capsys, given, path, out), SOURCES[given].KIND
    named = READ_BY.get(true, true)
    assert said == f"Error: '{path}' is not {kind}, its keys are those of another source: give --source {named}.\n"
    assert not out.exists()


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_converted_file_is_not_converted_again(prefix, tmp_path, capsys):
    state = {key[9:] if not prefix else key: value for key, value in mae.convert(timm_state(), HEADS)[0].items()}
    torch.save(dict(state_dict=state), tmp_path / 'file.pth')
    said = refused(capsys, 'mae', tmp_path / 'file.pth', tmp_path / 'out.pth')
    assert said.endswith('has the keys of OpenMMLab already: there is nothing to convert.\n')


@pytest.mark.slow
def test_arguments_of_a_training_script_are_left_out_as_the_error_says(tmp_path, capsys, monkeypatch):
    path = tmp_path / 'a "file" of $training.pth'
    torch.save(dict(model=timm_state(), epoch=1, args=argparse.Namespace(lr=np.float64(0.1))), path)
    said = refused(capsys, 'mae', path, tmp_path / 'out.pth')
    assert "it holds 'argparse.Namespace', which is code" in said
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    command = re.search('`python (.*)`', said)[1]
    subprocess.run(f'{sys.executable} {command}', shell=True, check=True, cwd=tmp_path, env=dict(os.environ))
    stripped = path.with_name('a "file" of $training_without_args.pth')
    assert torch.load(stripped, weights_only=True).keys() == {'model', 'epoch'}
    convert('mae', stripped, tmp_path / 'out.pth', '--num-heads', HEADS)
    assert (tmp_path / 'out.pth').exists()


def test_other_code_has_no_such_remedy(tmp_path, capsys):
    torch.save(dict(model=timm_state(), args=Path('x')), tmp_path / 'file.pth')
    said = refused(capsys, 'mae', tmp_path / 'file.pth', tmp_path / 'out.pth')
    assert 'Path' in said and 'python -c' not in said


def test_where_mmpretrain_is_absent_the_model_is_written_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    monkeypatch.setattr(tool, 'CONFIGS', tmp_path)
    (tmp_path / 'swag_vit-l_imagenet.py').write_text("_base_ = 'mmpretrain::_base_/default_runtime.py'")
    notes = swag.convert(released(encoder_state(), 'l', 16, 32))[1]
    needs, head, *lines = tool.advice(notes, Path('out.pth'), whole_model=True)
    assert needs.startswith(
        'It fits mmtr::swag_vit-l_imagenet.py, which needs mmpretrain, which is not installed: run '
    )
    assert head == 'Its model:' and lines[:5] == [
        'model = dict(',
        "    type='mmtr.ImageClassifier',",
        "    backbone=dict(type='mmtr.ClsVisionTransformer', arch='large', img_size=512, patch_size=16, "
        "out_type='cls_token'),",
        "    head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=1024),",
        '    data_preprocessor=dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), to_rgb=True),',
    ]


def test_the_config_and_what_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'import_mmpretrain', lambda what: None)
    monkeypatch.setattr(tool, 'CONFIGS', tmp_path)
    text = """
data_preprocessor = dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='mmtr.ImageClassifier',
    backbone=dict(type='mmtr.ClsVisionTransformer', arch='l', img_size=224, patch_size=16, out_type='avg_featmap',
                  final_norm=False),
    head=dict(type='LinearClsHead', num_classes=1000, in_channels=1024),
)
"""
    (tmp_path / 'mae_vit-l_imagenet.py').write_text(text)
    state = released(timm_state(), 'l', 16, 14)
    for source, options in ((mae, ''), (cropr, ' --cfg-options model.backbone.out_type=avg_all')):
        said = tool.advice(source.convert(state)[1], Path('out.pth'), whole_model=True)
        assert said[1] == f'  python -m mmtr test mmtr::mae_vit-l_imagenet.py out.pth{options}'
    state = released(timm_state('norm', head=False), 'l', 16, 14)
    said = tool.advice(mae.convert(state)[1], Path('out.pth'), whole_model=False)
    assert said[1] == (
        '  python -m mmtr train mmtr::mae_vit-l_imagenet.py --cfg-options model.backbone.init_cfg.checkpoint=out.pth'
    )
