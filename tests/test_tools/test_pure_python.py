"""Every tool with a config in pure Python, and with the same one by names."""

import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmtr.config.files import load_config
from mmtr.inference.model import build_model, load_weights
from tests.conftest import TOOLS

IMPORTS = """
from mmcv.transforms import LoadImageFromFile, TestTimeAug
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import LinearLR, OptimWrapper, PolyLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from mmseg.datasets import BaseSegDataset, LoadAnnotations, PackSegInputs, PhotoMetricDistortion
from mmseg.datasets.transforms.transforms import RandomFlip
from mmseg.engine import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.models import (
    CrossEntropyLoss, EncoderDecoder, SegDataPreProcessor, SegmenterMaskTransformerHead, SegTTAModel, VisionTransformer)
from mmseg.visualization import SegLocalVisualizer
from torch.optim import AdamW
"""
REDUCTION = "dict(type={}, ratio=0.5, layers=(0, 2), merge='keep')"
HOOK = '[dict(type={}, token_reduction={})]'
# By name and in pure Python: what a config begins with that inherits, its hook, and with Cropr in the place of that.
STYLES = dict(
    names=(
        "_base_ = './base.py'\n",
        HOOK.format("'mmtr.TokenReductionHook'", REDUCTION.format("'TokenAdapter'")),
        "model = dict(type='mmtr.EncoderDecoder', backbone=dict(type='mmtr.VisionTransformer', num_layers=4, "
        "token_reduction=dict(type='Cropr', r=5, num_classes=4)))",
    ),
    pure=(
        'from mmengine.config import read_base\nfrom mmtr.engine.hooks import TokenReductionHook\n'
        'from mmtr.models.backbones import VisionTransformer\nfrom mmtr.models.segmentors import EncoderDecoder\n'
        'from mmtr.reducers import Cropr, TokenAdapter\nwith read_base():\n    from .base import *\n',
        HOOK.format('TokenReductionHook', REDUCTION.format('TokenAdapter')),
        'model.update(type=EncoderDecoder)\nmodel.backbone.update(type=VisionTransformer, num_layers=4, '
        'token_reduction=dict(type=Cropr, r=5, num_classes=4))',
    ),
)


def write(style, cfg, folder):
    """The configs 'plain', 'hook' and 'cropr' of a style; their folder."""
    folder = folder / style
    folder.mkdir()
    text = Config({**cfg, 'work_dir': 'work_dirs/a'}).pretty_text
    if style == 'pure':
        text = IMPORTS + re.sub(r"\btype='(\w+)'", r'type=\1', text.replace("default_scope = 'mmseg'\n", ''))
    (folder / 'base.py').write_text(text)
    begin, hook, cropr = STYLES[style]
    for name, end in dict(plain='', hook=f'custom_hooks = {hook}', cropr=cropr).items():
        (folder / f'{name}.py').write_text(f'{begin}{end}\n')
    return folder


@pytest.fixture
def configs(style, tiny_segmenter, tmp_path):
    """Folder of the configs of one style, each with a checkpoint."""
    folder = write(style, tiny_segmenter, tmp_path)
    for name in ('hook', 'cropr'):
        torch.manual_seed(0)
        model = build_model(load_config(str(folder / f'{name}.py')))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
    return folder


def test_they_are_read_as_one_config(tiny_segmenter, tmp_path):
    folders = [write(style, tiny_segmenter, tmp_path) for style in STYLES]
    for name in ('plain', 'hook', 'cropr'):
        read = [load_config(str(folder / f'{name}.py')) for folder in folders]
        assert read[0].to_dict() == read[1].to_dict()
        read[1].dump(str(tmp_path / 'dumped.py'))
        # mmengine itself writes full names.
        Config.fromfile(folders[1] / f'{name}.py').dump(str(tmp_path / 'stock.py'))
        assert 'mmseg.models.SegTTAModel' in (tmp_path / 'stock.py').read_text()
        for path in ('dumped.py', 'stock.py'):
            assert load_config(str(tmp_path / path)).to_dict() == read[0].to_dict()


def _train(run, folder):
    run('hook.py', '--amp', '--work-dir', 'out', '--cfg-options', 'train_cfg.max_iters=2')
    record = Config.fromfile('out/hook.py')
    assert record.default_hooks.checkpoint.type == 'mmtr.CheckpointHook'
    assert record.optim_wrapper.type == 'mmtr.CPUAmpOptimWrapper'
    assert load_weights(build_model(record), 'out/iter_2.pth') is not None


def _test(run, folder):
    run('hook.py', 'hook.pth', '--tta', '--out', 'maps', '--show-dir', 'shown', '--work-dir', 'out')
    assert len(list((folder / 'maps').glob('*.png'))) == 6 and list((folder / 'shown').rglob('test_*.png'))
    (record,) = (folder / 'out').glob('*/hook.py')
    assert isinstance(load_config(str(record)).tta_model, dict)


def _benchmark(run, folder):
    run('hook.py', 'plain.py', '--shape', 64, 64, '--repeats', 1, '--device', 'cpu', '--json', 'out.json')
    hook, plain = json.loads((folder / 'out.json').read_text())['results']
    assert hook['tokens_per_layer'] == [4, 4] and not plain['tokens_per_layer']


def _analyze_tokens(run, folder):
    run('hook.py', 'hook.pth', '--out', 'out', '--repeats', 1, '--num-images', 1, '--device', 'cpu')
    assert list(json.loads((folder / 'out/layers.json').read_text())['results']) == ['plain', 'TokenAdapter']


def _export(run, folder):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    out = run('hook.py', 'hook.pth', '--out', 'out.onnx', '--repeats', 0)
    assert 'TokenAdapter: 16 -> 4 patch tokens from layer 0' in out and (folder / 'out.onnx').is_file()


def _predict(run, folder):
    cv2.imwrite('a.png', np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    out = run('hook.py', 'hook.pth', 'a.png', '--out', 'out', '--compare', '--repeats', 1, '--device', 'cpu')
    assert 'TokenAdapter: 16 -> 4 patch tokens from layer 0' in out and cv2.imread('out/a.png') is not None


def _compare(run, folder):
    Path('some.py').write_text(f'reductions = dict(half={REDUCTION.format(repr("TokenAdapter"))})\n')
    assert 'half' in run('plain.py', 'hook.pth', 'some.py', '--device', 'cpu')


def _tune_reduction(run, folder):
    pytest.importorskip('optuna')
    (folder / 'further').mkdir()
    run(
        'plain.py',
        'hook.pth',
        '--out',
        'further/tuned.py',
        '--target-speedup',
        0.01,
        '--method',
        'TokenAdapter',
        '--trials',
        1,
        '--num-images',
        3,
        '--device',
        'cpu',
    )
    tuned = load_config('further/tuned.py')
    assert tuned.custom_hooks[0].token_reduction.type == 'TokenAdapter' and tuned.model.backbone.embed_dims == 32


def _deploy_model(run, folder):
    (folder / 'further').mkdir()
    run('cropr.py', 'cropr.pth', 'further/small.pth')
    model = build_model(load_config('further/small.py'))
    load_weights(model, 'further/small.pth')
    assert model.backbone.token_reducer.deploy


QUICK = (_train, _test, _benchmark, _analyze_tokens, _predict)
SLOW = (_export, _compare, _tune_reduction, _deploy_model)


# By names, each tool has further tests.
@pytest.mark.parametrize(
    'tool, style',
    [
        pytest.param(tool, style, marks=[] if tool in QUICK and style == 'pure' else pytest.mark.slow)
        for tool in (*QUICK, *SLOW)
        for style in STYLES
    ],
)
def test_a_tool_works_with_both(tool, style, configs, monkeypatch, capsys):
    def run(*args):
        name = tool.__name__[1:]
        monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
        capsys.readouterr()
        runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
        return ''.join(capsys.readouterr())

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    monkeypatch.chdir(configs)
    tool(run, configs)
