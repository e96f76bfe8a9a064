"""Shared fixtures: a data set drawn on the spot and the smallest stock Segmenter that trains on it."""

import copy
import functools
import itertools
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, config, utils
from mmengine.runner import Runner
from mmengine.utils import ManagerMixin
from PIL import Image

import mmtr  # noqa: F401

pytest.register_assert_rewrite('tests.documented_commands')
TOOLS = Path(__file__).parents[1] / 'tools'
RUNS = itertools.count()
CLASSES = ('sky', 'grass', 'sand', 'lake')
torch.set_num_threads(1)
# mmengine parses the metafiles of all models of mmseg anew for each packaged base, half a second a config, and formats
# every config that a runner logs: a third of the time of the tests of the tools.
utils.load = functools.lru_cache(utils.load)
find_config = Config._get_cfg_path
find_packaged = functools.cache(lambda name: find_config(name, ''))
Config._get_cfg_path = staticmethod(
    lambda name, file: find_packaged(name) if name.startswith(('mmseg::', 'mmdet::')) else find_config(name, file)
)
read_config = Config.fromfile
format_code = config.FormatCode
config.FormatCode = lambda text, **style: (f'{text.rstrip()}\n', False)


@functools.cache
def config_of_ours(path):
    return read_config(path)


def read_once(path, *args, **kwargs):
    """``Config.fromfile`` that reads a file in configs/ once; they do not change while tests run."""
    if args or kwargs or TOOLS.parent / 'configs' not in Path(path).resolve().parents:
        return read_config(path, *args, **kwargs)
    return copy.deepcopy(config_of_ours(str(path)))


Config.fromfile = staticmethod(read_once)


def draw_scenes(folder, count):
    """``count`` validation scenes of the demo, drawn as its user draws them, in a process of its own: the data root."""
    subprocess.run(
        [
            sys.executable,
            TOOLS.parent / 'demo/draw_scenes.py',
            '--out',
            folder / 'scenes',
            '--train',
            '0',
            '--val',
            str(count),
        ],
        check=True,
    )
    return folder / 'scenes'


def draw_data(root, images=6, size=64, seed=0):
    """Images of coloured stripes with their label maps, in the folders of ADE20K."""
    rng = np.random.default_rng(seed)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(images):
            labels = np.repeat(rng.integers(0, len(CLASSES), 4), size // 4).astype(np.uint8)
            labels = np.broadcast_to(labels if i % 2 else labels[:, None], (size, size))
            pixels = labels[..., None] * np.array([60, 20, 40]) + rng.integers(0, 40, (size, size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / 'images' / split / f'{i}.png')
            Image.fromarray(labels).save(root / 'annotations' / split / f'{i}.png')


def segmenter_cfg(root, work_dir):
    """Config of a stock mmseg Segmenter (width 32, two layers), with stochastic depth and augmentation."""
    meta = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]

    def loader(split, pipeline, sampler, batch_size):
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(root),
            img_suffix='.png',
            seg_map_suffix='.png',
            metainfo=dict(classes=CLASSES),
            pipeline=meta + pipeline,
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
        )
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type=sampler, shuffle=split == 'training'),
            dataset=dataset,
        )

    augment = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'), dict(type='PackSegInputs')]
    val = loader('validation', [dict(type='PackSegInputs')], 'DefaultSampler', 1)
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return Config(
        dict(
            default_scope='mmseg',
            work_dir=str(work_dir),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', size=(64, 64), mean=[127.5] * 3, std=[64.0] * 3, seg_pad_val=255
                ),
                backbone=dict(
                    type='VisionTransformer',
                    img_size=(64, 64),
                    patch_size=16,
                    embed_dims=32,
                    num_layers=2,
                    num_heads=2,
                    mlp_ratio=2,
                    drop_path_rate=0.2,
                    final_norm=True,
                ),
                decode_head=dict(
                    type='SegmenterMaskTransformerHead',
                    in_channels=32,
                    channels=32,
                    num_classes=len(CLASSES),
                    num_layers=1,
                    num_heads=2,
                    embed_dims=32,
                    dropout_ratio=0.0,
                    loss_decode=dict(type='CrossEntropyLoss'),
                ),
                test_cfg=dict(mode='whole'),
            ),
            train_dataloader=loader('training', augment, 'InfiniteSampler', 2),
            val_dataloader=val,
            test_dataloader=val,
            val_evaluator=dict(type='IoUMetric'),
            test_evaluator=dict(type='IoUMetric'),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, end=2, by_epoch=False),
                dict(type='PolyLR', eta_min=0.0, power=0.9, begin=2, end=4, by_epoch=False),
            ],
            default_hooks=dict(
                timer=dict(type='IterTimerHook'),
                logger=dict(type='LoggerHook', interval=1),
                param_scheduler=dict(type='ParamSchedulerHook'),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='mIoU'),
                visualization=dict(type='SegVisualizationHook'),
            ),
            visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            tta_model=dict(type='SegTTAModel'),
            tta_pipeline=[
                dict(type='LoadImageFromFile'),
                dict(
                    type='TestTimeAug', transforms=[flips, [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]]
                ),
            ],
            log_processor=dict(by_epoch=False, window_size=1),
        )
    )


def subclasses(kind):
    """All of them, at any depth."""
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]


def instances_as_before():
    """mmengine keeps by class and name, for all that follow in a process, what a run made: scope, log, visualizer."""
    kept = {kind: kind._instance_dict.copy() for kind in subclasses(ManagerMixin)}
    yield
    for kind in subclasses(ManagerMixin):
        kind._instance_dict.clear()
        kind._instance_dict.update(kept.get(kind, {}))


# Fixtures of a module make runs too, which its tests see and the next module does not.
instances_of_a_module = pytest.fixture(instances_as_before, scope='module', autouse=True)
instances_of_a_test = pytest.fixture(instances_as_before, autouse=True)


@pytest.fixture
def formatted(monkeypatch):
    """Configs are written as mmengine formats them."""
    monkeypatch.setattr(config, 'FormatCode', format_code)


@pytest.fixture
def drawn_data(tmp_path):
    """Folder of six training and six validation images of 64x64, four classes, labels 0 to 3."""
    draw_data(tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture
def tiny_segmenter(drawn_data, tmp_path):
    """Config of a Segmenter that trains on ``drawn_data`` for four iterations, in ``tmp_path / 'work'``."""
    return segmenter_cfg(drawn_data, tmp_path / 'work')


@pytest.fixture
def make_runner():
    """Function from a config to a ``Runner``; each has a name of its own, by which mmengine keeps state, and a seed."""

    def make(cfg):
        seed = dict(randomness=dict(seed=0))
        return Runner.from_cfg(Config({**seed, **copy.deepcopy(cfg), 'experiment_name': f'run_{next(RUNS)}'}))

    return make


@pytest.fixture
def tool(monkeypatch, capsys):
    """Function that runs ``tools/NAME.py`` in this process; gives its exit status and what went to stderr."""

    def run(name, config, *args):
        options = list(map(str, args))
        options += [] if '--cfg-options' in options else ['--cfg-options']
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # which the tools set for good
        monkeypatch.setattr(sys, 'argv', [name, str(config), *options, f'experiment_name=run_{next(RUNS)}'])
        capsys.readouterr()
        try:
            runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run
