"""DINOv3's configs with a linear head: data and head fit, twins are one key away, and a frozen backbone alone rests."""

import pytest
from mmseg.registry import DATASETS

from mmtr.checks.config import check_config
from mmtr.engine.trainable import TrainableConstructor
from mmtr.inference.model import build_model

from .config_files import ROOT, read, without_weights

NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('dinov3-*.py'))
PLAIN = [name for name in NAMES if '_tadapter_' not in name]
#: Millions of parameters of the backbone, as published.
PARAMETERS = {'dinov3-s': 21.596, 'dinov3-b': 85.660, 'dinov3-l': 303.129}


@pytest.mark.parametrize('name', PLAIN)
def test_model_and_data_fit(name):
    cfg = read(f'{name}.py')
    check_config(cfg, ['train_dataloader', 'val_dataloader'])
    model = without_weights(cfg)
    counted = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    assert counted == pytest.approx(PARAMETERS[name.split('_')[0]], rel=1e-3)
    assert model.decode_head.conv_seg.in_channels == cfg.model.backbone.embed_dims
    classes = DATASETS.get(cfg.test_dataloader.dataset.type).METAINFO['classes']
    assert model.decode_head.num_classes == len(classes)
    (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    assert tuple(crop.crop_size) == tuple(cfg.model.test_cfg.crop_size) == tuple(cfg.model.backbone.img_size)


@pytest.mark.parametrize('name', PLAIN)
def test_the_reduced_twin_is_one_key_away(name):
    reduced = read(f'{name.replace("_simple_", "_simple_tadapter_")}.py')
    assert reduced.model.backbone.pop('token_reduction').type == 'TokenAdapter'
    assert reduced.to_dict() == read(f'{name}.py').to_dict()


def test_every_size_is_there():
    assert len(PLAIN) == 6 and len(NAMES) == 12


@pytest.mark.parametrize(
    'key', [{}, dict(peft=dict(type='LoRA')), dict(token_reduction=dict(type='Cropr', layers=(0,)))], ids=str
)
def test_the_backbone_rests_and_what_is_added_to_it_learns(key):
    cfg = read('dinov3-s_simple_ade20k.py')
    cfg.merge_from_dict(
        {
            'model.backbone': dict(embed_dims=64, num_layers=3, num_heads=1, hidden=64, **key),
            'model.decode_head.in_channels': 64,
        }
    )
    wrapper, model = cfg.optim_wrapper, build_model(cfg)
    constructor = TrainableConstructor(dict(type='OptimWrapper', optimizer=wrapper.optimizer), wrapper.paramwise_cfg)
    rate = {id(p): group['lr'] for group in constructor(model).param_groups for p in group['params']}
    for name, parameter in model.named_parameters():
        own = name.startswith('backbone.') and not name.startswith(('backbone.peft.', 'backbone.token_reducer.'))
        assert rate.get(id(parameter), 0) == (0 if own else 1e-3), name
