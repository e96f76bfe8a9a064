"""tools/train.py and tools/test.py through the real runner, on a drawn data set."""

import os
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from PIL import Image
from run_records import scores

from mmtr import apply_token_reduction
from tests.conftest import CLASSES, TOOLS


def mean_iou(data, out):
    """mIoU in per cent, rounded like mmseg's, of the label maps in ``out``."""
    names = [path.name for path in (data / 'annotations' / 'validation').iterdir()]
    label, guess = (
        np.stack([np.asarray(Image.open(folder / name)) for name in names])
        for folder in (data / 'annotations' / 'validation', out)
    )
    with np.errstate(invalid='ignore'):
        each = [((label == c) & (guess == c)).sum() / ((label == c) | (guess == c)).sum() for c in range(len(CLASSES))]
    return round(float(np.nanmean(each)) * 100, 2)


def test_label_maps_and_pictures_are_written_and_give_the_reported_score(config, weights, tool, drawn_data, tmp_path):
    status, _ = tool(
        'test',
        config,
        weights,
        '--out',
        tmp_path / 'out',
        '--show-dir',
        tmp_path / 'show',
        '--work-dir',
        tmp_path / 'w',
    )
    assert status == 0
    assert scores(tmp_path / 'w')['mIoU'] == pytest.approx(mean_iou(drawn_data, tmp_path / 'out'), abs=1e-5)
    assert len({path.name.split('.')[0] for path in (tmp_path / 'show').rglob('test_*.png')}) == 6
    guessed = {int(c) for path in (tmp_path / 'out').iterdir() for c in np.unique(Image.open(path))}
    assert len(guessed) > 1


@pytest.mark.slow
def test_the_ways_to_reduce_from_the_command_line_are_one(config, weights, model, tool, drawn_data, tmp_path):
    reduction = dict(type='TokenAdapter', ratio=0.5, layers=(0, 2), merge='keep')
    key = 'model.backbone.token_reduction'
    ways = dict(
        plain=(),
        short=('--token-reduction', 'TokenAdapter', 'ratio=0.5', 'layers=(0,2)', 'merge=keep'),
        hook=('--cfg-options', f"custom_hooks=[dict(type='mmtr.TokenReductionHook',token_reduction={reduction})]"),
        key=(
            '--cfg-options',
            'model.backbone.type=mmtr.VisionTransformer',
            f'{key}.type=TokenAdapter',
            f'{key}.ratio=0.5',
            f'{key}.layers=(0,2)',
            f'{key}.merge=keep',
        ),
    )
    for name, options in ways.items():
        options = (*options, 'randomness.seed=0') if '--cfg-options' in options else options
        assert tool(
            'test', config, weights, '--out', tmp_path / name, '--work-dir', tmp_path / 'w' / name, *options
        ) == (0, '')
        (log,) = (tmp_path / 'w' / name).glob('*/*.log')
        line = 'TokenAdapter: 16 -> 4 patch tokens from layer 0, in images of 4x4 patches\n'
        assert log.read_text().count(line) == (name != 'plain')
    apply_token_reduction(model, reduction)
    for i in range(6):
        image = np.asarray(Image.open(drawn_data / 'images' / 'validation' / f'{i}.png'))[..., ::-1].copy()
        x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127.5) / 64
        with torch.no_grad():
            expected = model.encode_decode(x, [dict(img_shape=(64, 64))]).argmax(1)[0].numpy()
        for name in ('short', 'hook', 'key'):
            assert np.array_equal(np.asarray(Image.open(tmp_path / name / f'{i}.png')), expected)


@pytest.mark.slow
def test_two_gloo_processes_give_the_score_of_one(config, weights, tool, tmp_path):
    tool('test', config, weights, '--work-dir', tmp_path / 'one')
    subprocess.run(
        ['bash', TOOLS / 'dist_test.sh', config, weights, '2', '--work-dir', tmp_path / 'two'],
        check=True,
        capture_output=True,
        env={**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'},
    )
    one, two = scores(tmp_path / 'one'), scores(tmp_path / 'two')
    assert {key: one[key] for key in ('mIoU', 'aAcc', 'mAcc')} == {key: two[key] for key in ('mIoU', 'aAcc', 'mAcc')}


def test_test_time_augmentation_averages_the_image_and_its_mirror_image(
    config, model, weights, tool, drawn_data, tmp_path
):
    assert tool('test', config, weights, '--tta', '--out', tmp_path / 'out')[0] == 0
    changed = 0
    for i in range(6):
        image = np.asarray(Image.open(drawn_data / 'images' / 'validation' / f'{i}.png'))[..., ::-1].copy()
        x = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127.5) / 64
        with torch.no_grad():
            once, mirrored = (
                model.encode_decode(each, [dict(img_shape=(64, 64))]).softmax(1) for each in (x, x.flip(-1))
            )
        expected = ((once + mirrored.flip(-1)) / 2).argmax(1)[0]
        found = torch.from_numpy(np.asarray(Image.open(tmp_path / 'out' / f'{i}.png')).astype(np.int64))
        assert torch.equal(found, expected)
        changed += int((expected != once.argmax(1)[0]).sum())
    assert changed > 0


@pytest.mark.slow
def test_test_time_augmentation_that_the_config_lacks_is_that_of_mmseg(config, weights, tool, tmp_path):
    theirs = get_config('mmseg::_base_/datasets/ade20k.py').tta_pipeline
    for name, tta in dict(absent=None, given=[step.to_dict() for step in theirs]).items():
        config.write_text(f'{config.read_text()}\ntta_model = None\ntta_pipeline = {tta}\n')
        assert tool('test', config, weights, '--tta', '--out', tmp_path / name) == (0, '')
    assert tool('test', config, weights, '--out', tmp_path / 'once') == (0, '')
    absent, given, once = (
        np.stack([np.asarray(Image.open(tmp_path / name / f'{i}.png')) for i in range(6)])
        for name in ('absent', 'given', 'once')
    )
    assert (absent == given).all() and (absent != once).any()


@pytest.mark.slow
def test_another_models_checkpoint_stops_the_test_unless_partial_is_allowed(config, weights, tool, tmp_path):
    options = [
        '--work-dir',
        tmp_path / 'w' / 'deep',
        '--out',
        tmp_path / 'out',
        '--show-dir',
        tmp_path / 'show',
        '--cfg-options',
        'model.backbone.num_layers=3',
    ]
    before = set(tmp_path.iterdir())
    status, said = tool('test', config, weights, *options)
    assert status == 2
    assert '12 missing (backbone.layers.2.ln1.weight, ' in said and '--allow-partial' in said
    assert set(tmp_path.iterdir()) == before
    assert tool('test', config, weights, '--allow-partial', *options)[0] == 0
    assert len(list((tmp_path / 'out').iterdir())) == 6


@pytest.mark.parametrize(
    'name, args, words',
    [
        ('test', ['gone.pth'], "Checkpoint 'gone.pth' is not there."),
        ('test', ['{tmp}/half.pth'], "half.pth' (500 bytes) cannot be read, it is corrupt"),
        ('test', ['{weights}', '--out', 'preds', '--cfg-options', 'test_evaluator.type=DumpResults'], '.pkl'),
        ('test', ['{weights}', '--out', '{weights}/out'], "--out '{weights}/out' cannot be a folder"),
        ('test', ['{weights}', '--launcher', 'pytorch'], 'RANK is not set'),
        ('test', ['{weights}', '--cfg-options', 'test_dataloader.dataset.data_root=gone'], "'gone' is not there"),
        ('train', ['--cfg-options', 'model.decode_head.num_classes=3'], 'BaseSegDataset has 4 classes'),
        ('train', ['--cfg-options', 'oops'], "not 'oops'"),
        ('train', ['--cfg-options', 'load_from=gone.pth'], "'gone.pth' is not there"),
        ('train', ['--amp', '--cfg-options', 'optim_wrapper.type=Mine'], "'Mine'"),
    ],
)
def test_what_cannot_work_is_one_sentence_and_leaves_nothing(
    name, args, words, config, weights, tool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'half.pth').write_bytes(weights.read_bytes()[:500])
    before = sorted(path for path in tmp_path.rglob('*'))
    fill = dict(tmp=tmp_path, weights=weights)
    status, said = tool(name, config, *(arg.format(**fill) for arg in args))
    assert status == 2
    assert said.count('\n') == 1 and said.startswith('Error: ')
    assert words.format(**fill) in said
    assert sorted(path for path in tmp_path.rglob('*')) == before


@pytest.mark.slow
def test_testing_does_without_training_data(config, weights, tool, drawn_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(drawn_data / 'images/training')
    before = sorted(tmp_path.rglob('*'))
    status, said = tool('test', config, weights, '--cfg-options', 'model.backbone.mlp_ratio=3')
    assert status == 2 and 'of another shape' in said
    assert sorted(tmp_path.rglob('*')) == before
    assert tool('test', config, weights, '--show-dir', tmp_path / 'shown')[0] in (0, None)
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 6


def test_a_config_that_is_not_there_is_said(tool, tmp_path):
    assert tool('train', tmp_path / 'no.py') == (2, f"Error: Config '{tmp_path}/no.py' is not there.\n")


def test_packaged_configs_are_known_by_name(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = tool('train', 'mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py')
    assert status == 2
    assert "The data root 'data/ade/ADEChallengeData2016' is not there" in said
    assert 'annotations/training/*.png' in said
    assert list(tmp_path.iterdir()) == []
    assert tool('train', 'mmpose::any.py') == (
        2,
        "Error: Config 'mmpose::any.py' is of 'mmpose', which is not installed.\n",
    )


def test_detectors_write_a_pickle_and_paint_through_their_own_hook(tmp_path):
    functions = runpy.run_path(str(TOOLS / 'test.py'))
    cfg = Config(
        dict(
            default_scope='mmdet',
            test_evaluator=dict(type='CocoMetric'),
            default_hooks=dict(visualization=dict(type='DetVisualizationHook')),
        )
    )
    functions['paint'](cfg, str(tmp_path / 'show'))
    assert cfg.default_hooks.visualization == dict(
        type='DetVisualizationHook', draw=True, test_out_dir=str(tmp_path / 'show')
    )
    functions['write_predictions'](cfg, 'found.pkl')
    assert cfg.test_evaluator == [dict(type='CocoMetric'), dict(type='mmdet.DumpDetResults', out_file_path='found.pkl')]
