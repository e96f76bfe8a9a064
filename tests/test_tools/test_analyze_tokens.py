import json
import math
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmtr.inference.model import build_model
from tests.conftest import TOOLS

REDUCTIONS = """
reductions = {'half': dict(type='Random', ratio=0.5, layer=0), 'one left': dict(type='Random', ratio=0.9, layer=1)}
"""


@pytest.fixture
def files(tiny_segmenter, tmp_path):
    """Config, checkpoint and reductions of a tiny mmtr Segmenter that uses Token Adapter; a ResNet's config."""
    tiny_segmenter.model.backbone.update(type='mmtr.VisionTransformer', token_reduction=dict(type='TokenAdapter'))
    resnet = Config(tiny_segmenter.to_dict())
    resnet.model.backbone = dict(type='ResNet', depth=18)
    resnet.model.decode_head = dict(type='FCNHead', in_channels=512, channels=8, num_classes=4)
    for name, cfg in (('tiny', tiny_segmenter), ('resnet', resnet)):
        cfg.dump(str(tmp_path / f'{name}.py'))
        torch.manual_seed(0)
        torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / f'{name}.pth')
    (tmp_path / 'reductions.py').write_text(REDUCTIONS)
    return tmp_path


@pytest.fixture
def run(files, monkeypatch, capsys):
    """Function that runs the tool; gives its exit status, and what it printed or the error."""

    def run(*args, model='tiny'):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'analyze_tokens.py',
                str(files / f'{model}.py'),
                str(files / f'{model}.pth'),
                '--out',
                str(files / 'out'),
                '--device',
                'cpu',
                '--repeats',
                '1',
                *map(str, args),
            ],
        )
        try:
            runpy.run_path(str(TOOLS / 'analyze_tokens.py'), run_name='__main__')
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def picture(path):
    found = cv2.imread(str(path))
    assert found is not None, path
    return found


@pytest.mark.slow
def test_own_reduction_beside_none_on_the_test_data(run, files, drawn_data):
    status, printed = run('--num-images', 2, '--maps')
    assert status == 0
    report = json.loads((files / 'out/layers.json').read_text())
    assert report['images'] == [str(drawn_data / f'images/validation/{i}.png') for i in range(2)]
    assert report['reductions'] == dict(type='TokenAdapter') and 'analyze_tokens.py' in report['command']
    assert report['machine']['torch'] == torch.__version__
    plain, reduced = (report['results'][name]['layers'] for name in ('plain', 'TokenAdapter'))
    assert plain['attention_tokens'] == [16, 16] and reduced['attention_tokens'] == [16, 9]
    assert plain['attention_diversity'][0] == pytest.approx(reduced['attention_diversity'][0])
    assert plain['token_similarity'][1] != reduced['token_similarity'][1]
    assert [line.split()[0] for line in printed.splitlines()[1:3]] == ['plain', 'TokenAdapter']
    for name in ('attention_diversity', 'token_similarity', 'tokens', 'time'):
        assert picture(files / f'out/{name}.png').std() > 5
    maps = sorted((files / 'out/maps').iterdir())
    assert [path.name for path in maps] == ['0_TokenAdapter.jpg', '1_TokenAdapter.jpg']
    shown = picture(maps[1])[26:426, :400]
    expected = picture(drawn_data / 'images/validation/1.png')
    expected = cv2.resize(expected, (400, 400), interpolation=cv2.INTER_NEAREST)
    assert np.abs(shown - expected.astype(float)).mean() < 10  # of JPEG


def test_given_images_and_reductions(run, files, drawn_data):
    status, _ = run(
        '--images', drawn_data / 'images/training', '--num-images', 1, '--reductions', files / 'reductions.py', '--maps'
    )
    assert status == 0
    report = json.loads((files / 'out/layers.json').read_text())
    assert report['images'] == [str(drawn_data / 'images/training/0.png')]
    layers = {name: result['layers'] for name, result in report['results'].items()}
    assert {name: found['attention_tokens'] for name, found in layers.items()} == {
        'plain': [16, 16],
        'half': [8, 8],
        'one left': [16, 2],
    }
    assert not any(math.isnan(v) for found in layers.values() for values in found.values() for v in values)
    assert {path.name for path in (files / 'out/maps').iterdir()} == {'0_half.jpg', '0_one_left.jpg'}


@pytest.mark.slow
def test_maps_of_images_of_four_channels_show_three(run, files, drawn_data):
    cfg = Config.fromfile(files / 'tiny.py')
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(mean=[127.5] * 4, std=[64.0] * 4)
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    cfg.dump(str(files / 'tiny.py'))
    torch.save(dict(state_dict=build_model(cfg).state_dict()), files / 'tiny.pth')
    image = cv2.imread(str(drawn_data / 'images/validation/0.png'))
    cv2.imwrite(str(files / 'four.png'), np.dstack([image, np.full(image.shape[:2], 7, np.uint8)]))
    status, said = run('--images', files / 'four.png', '--maps')
    assert status == 0, said
    (drawn,) = (files / 'out/maps').iterdir()
    shown = picture(drawn)[26:426, :400]
    assert np.abs(shown.astype(int) - cv2.resize(image, (400, 400), interpolation=cv2.INTER_NEAREST)).mean() < 12


@pytest.mark.slow
def test_what_a_single_token_lacks_is_null(run, files, drawn_data):
    (files / 'reductions.py').write_text("reductions = dict(one=dict(type='Random', ratio=0.96, layer=1))")
    assert run('--images', drawn_data / 'images/training/0.png', '--reductions', files / 'reductions.py')[0] == 0
    found = json.loads((files / 'out/layers.json').read_text())['results']['one']['layers']
    assert found['attention_tokens'] == [16, 1] and found['attention_diversity'][1] is None


@pytest.mark.parametrize(
    'args, sentence',
    [
        (['--images', '{empty}'], "--images '{empty}' holds no image (.jpg, "),
        (['--images', '{broken}'], "'{broken}/a.png' cannot be read as an image."),
        (['--images', 'nowhere.png'], "The image 'nowhere.png' is not there."),
        (['--cfg-options', 'test_dataloader.dataset.data_root=nowhere'], "The data root 'nowhere' is not there"),
        (['--reductions', '{empty}'], 'must be a Python or YAML file with reductions = dict'),
        (['--cfg-options', 'test_dataloader='], 'must have a model and a test_dataloader'),
        (['--num-images', '0'], '--num-images: invalid whole number above 0 value'),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, args, sentence):
    places = {name: tmp_path / name for name in ('empty', 'broken')}
    for path in places.values():
        path.mkdir()
    (places['broken'] / 'a.png').write_text('no image')
    status, error = run(*(arg.format(**places) for arg in args))
    assert status == 2
    assert sentence.format(**places) in error.splitlines()[-1]


@pytest.mark.slow
def test_a_model_without_tokens_is_said(run):
    status, error = run(model='resnet')
    assert (status, error.splitlines()[-1][:57]) == (2, 'Error: Tokens cannot be reduced in a ResNet of mmseg: use')
