"""Configs of DINOv2: binary tasks, tuned in every way."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules

from mmtr.inference.model import build_model

from .config_files import DINOV2, read


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_config_is_consistent(path):
    cfg = Config.fromfile(path)
    register_all_modules()
    backbone, head = cfg.model.backbone, cfg.model.decode_head
    assert (backbone.type, head.type, cfg.custom_imports.imports) == ('mmtr.DINOv2', 'mmtr.SimpleDecoder', ['mmtr'])
    assert (head.in_channels, head.channels) == (backbone.embed_dims, 256)
    letter = path.stem.removeprefix('dinov2-').split('_')[0]
    assert backbone.embed_dims == 64 * backbone.num_heads == dict(ti=192, s=384, b=768, l=1024)[letter]
    assert tuple(cfg.model.data_preprocessor.size) == tuple(backbone.img_size) == tuple(cfg.crop_size)
    if letter == 'ti':  # trained from random weights here
        assert not any(n % backbone.patch_size for n in cfg.crop_size)
    else:
        assert tuple(cfg.crop_size) == (518, 518)
    data = cfg.test_dataloader.dataset
    classes = data.metainfo.classes if 'metainfo' in data else DATASETS.get(data.type).METAINFO['classes']
    assert head.num_classes == len(classes)
    if cfg.model.test_cfg.mode == 'slide':
        assert tuple(cfg.model.test_cfg.crop_size) == tuple(cfg.crop_size)
    crops = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert [tuple(step.crop_size) for step in crops] == [tuple(cfg.crop_size)]
    # An infinite sampler would never end an epoch.
    assert cfg.train_dataloader.sampler.type == 'DefaultSampler' and cfg.train_dataloader.batch_size == 10


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_config_is_its_full_twin_and_what_its_name_says(path):
    size, tuning, task = path.stem.split('_', 2)
    cfg = Config.fromfile(path).to_dict()
    model, backbone = cfg['model'], cfg['model']['backbone']
    found = [
        (backbone.pop('peft', None) or {}).pop('type', None),
        (backbone.pop('token_reduction', None) or {}).pop('type', None),
        model.pop('type'),
        model.pop('distillation', None),
    ]
    assert (
        found
        == {
            'full': [None, None, 'mmtr.EncoderDecoder', None],
            'lora': ['LoRA', None, 'mmtr.EncoderDecoder', None],
            'adapter': ['Adapter', None, 'mmtr.EncoderDecoder', None],
            'dar': ['DAR', 'DAR', 'mmtr.EncoderDecoder', None],
            'dar-distill': ['DAR', 'DAR', 'mmtr.DistillationEncoderDecoder', dict(loss_weight=0.1)],
        }[tuning]
    )
    twin = read(f'{size}_full_{task}.py').to_dict()
    del twin['model']['type']
    assert cfg == twin


def test_every_task_is_there_tuned_in_every_way():
    names = {path.stem for path in DINOV2}
    for task in ('duts', 'cod', 'cuhk', 'kvasir', 'isic2017', 'cityscapes'):
        assert {f'dinov2-b_{tuning}_{task}' for tuning in ('full', 'lora', 'dar', 'dar-distill')} <= names
    model = build_model(read('dinov2-b_dar_duts.py'))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(n for name, n in trained.items() if name.startswith('backbone.')) == 2_348_664
    assert {name.split('.')[1] for name in trained if name.startswith('backbone.')} == {'peft', 'token_reducer'}
    assert any(name.startswith('decode_head.') for name in trained)


@pytest.mark.parametrize('path', DINOV2, ids=lambda path: path.stem)
def test_dinov2_learning_rate_is_that_of_the_paper(path):
    cfg, epoch = Config.fromfile(path), 7
    parameter = torch.nn.Parameter(torch.zeros(1))
    lr = 1e-3 if path.stem.startswith('dinov2-ti') else 1.5e-4
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    optimizer = torch.optim.AdamW([parameter], lr=lr)
    with DefaultScope.overwrite_default_scope('mmengine'):
        schedulers = [
            PARAM_SCHEDULERS.build({**step, 'optimizer': optimizer}, default_args=dict(epoch_length=epoch))
            for step in cfg.param_scheduler
        ]
    warm_up, end = cfg.param_scheduler[0].end * epoch, cfg.train_cfg.max_epochs * epoch
    for step in range(end):
        if step < warm_up:
            expected = 1e-3 + (1 - 1e-3) * step / (warm_up - 1)
        else:
            expected = 1e-6 + (1 - 1e-6) * (1 + math.cos(math.pi * (step - warm_up) / (end - warm_up))) / 2
        assert optimizer.param_groups[0]['lr'] == pytest.approx(lr * expected, rel=1e-3), step
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_dinov2_config_builds_and_runs():
    # 4 x the 5x7 patches of an image that is padded to them.
    with torch.no_grad():
        assert build_model(read('dinov2-b_full_cityscapes.py'))(torch.zeros(1, 3, 57, 98)).shape == (1, 19, 20, 28)
