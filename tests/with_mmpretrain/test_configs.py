"""The configs of classification: against the papers' settings, mmpretrain's own configs, and each other."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmtr.config.files import load_config
from mmtr.inference.model import build_model

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = sorted(path.stem for kind in ('*_imagenet', '*_shapes') for path in CONFIGS.glob(f'{kind}.py'))
PLAIN = ('swag_vit-l_imagenet', 'swag_vit-b_imagenet', 'mae_vit-l_imagenet', 'mae_vit-b_imagenet', 'vit_shapes')


def read(name):
    return load_config(str(CONFIGS / f'{name}.py'))


def small(cfg):
    """The config with the widths of a tiny model, but its depth and grid."""
    backbone = cfg.model.backbone
    depth = dict(l=24, large=24, b=12, base=12).get(backbone.arch) if isinstance(backbone.arch, str) else 6
    backbone.arch = dict(embed_dims=16, num_layers=depth, num_heads=2, feedforward_channels=16)
    cfg.model.head.in_channels = 16
    return cfg


def without_scope(node):
    """A config without the scopes that mmengine writes into what is inherited from a package."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items() if key != '_scope_'}
    return [without_scope(value) for value in node] if isinstance(node, (list, tuple)) else node


def test_there_are_all_methods_of_the_papers():
    method = [name.split('_')[2] for name in NAMES if name.startswith('swag_vit-l') and name.count('_') == 3]
    assert sorted(method) == ['expediting', 'tadapter', 'tadapter-dagger32', 'tadapter-dagger64', 'tome32', 'tome64']
    assert len([name for name in NAMES if name.startswith('swag_vit-b')]) == 7
    assert {name for name in NAMES if name.startswith('mae')} == {
        f'mae_vit-{size}{method}_imagenet' for size in 'lb' for method in ('', '_cropr')
    }


@pytest.mark.parametrize('name', NAMES)
def test_config_builds_and_gives_scores(name):
    cfg = small(read(name))
    init_default_scope('mmpretrain')
    model = build_model(cfg)
    side = model.backbone.patch_size
    size = tuple(n * side for n in model.backbone.patch_resolution)
    assert cfg.test_dataloader.dataset.pipeline[-2].get('crop_size', size[0]) == size[0] == size[1]
    with torch.inference_mode():
        scores = model(torch.randn(2, 3, *size))
    assert scores.shape == (2, 10 if 'shapes' in name else 1000) and scores.isfinite().all()
    # The top-level data_preprocessor reaches the model.
    assert model.data_preprocessor.mean.numel() == 3 and model.data_preprocessor.to_rgb
    assert Runner.build_evaluator(None, cfg.test_evaluator).metrics[0].topk[0] == 1


@pytest.mark.parametrize('name', [name for name in NAMES if name not in PLAIN and 'mae' not in name])
def test_reduced_config_is_its_base_and_one_key(name):
    cfg, plain = read(name), read('_'.join(name.split('_')[:1] + name.split('_')[1:-2] + name.split('_')[-1:]))
    del cfg.model.backbone['token_reduction']
    assert cfg.to_dict() == plain.to_dict()


@pytest.mark.parametrize('size, epochs', [('l', 50), ('b', 100)])
def test_mae_is_finetuned_as_in_mmpretrain(size, epochs):
    cfg = read(f'mae_vit-{size}_imagenet')
    stock = load_config(
        f'mmpretrain::mae/benchmarks/vit-{dict(l="large", b="base")[size]}-p16_8xb128-coslr-{epochs}e_in1k.py'
    )
    assert (cfg.model.type, cfg.model.backbone.type) == ('mmtr.ImageClassifier', 'mmtr.ClsVisionTransformer')
    cfg.model.type, cfg.model.backbone.type = 'ImageClassifier', 'VisionTransformer'
    assert without_scope({key: cfg[key] for key in stock}) == without_scope(stock.to_dict())


def test_cropr_on_mae_has_the_recipe_of_the_paper():
    cfg = read('mae_vit-l_cropr_imagenet')
    init_default_scope('mmpretrain')
    model = build_model(small(read('mae_vit-l_cropr_imagenet')))
    lengths = [n + 1 for n in model.backbone.token_reducer.token_schedule((14, 14), 24)]
    assert lengths == [197, *range(188, 19, -8), 197]
    heads = list(model.backbone.token_reducer.heads.values())
    assert len(heads) == 22 and {len(head.queries) for head in heads} == {1}
    optimizer, (warm_up, cosine) = cfg.optim_wrapper, cfg.param_scheduler
    assert (optimizer.optimizer.lr, optimizer.optimizer.weight_decay, optimizer.paramwise_cfg) == (
        4e-3,
        0.05,
        dict(decay_rate=0.75),
    )
    assert 'clip_grad' not in optimizer and optimizer.type == 'AmpOptimWrapper'
    assert cosine.eta_min_ratio * optimizer.optimizer.lr == pytest.approx(1e-6)
    assert (warm_up.end, cosine.begin, cosine.end, cfg.train_cfg.max_epochs) == (5, 5, 50, 50)
    augments = {augment.type: augment.alpha for augment in cfg.model.train_cfg.augments}
    assert augments == dict(Mixup=0.8, CutMix=1.0) and cfg.model.head.loss.label_smooth_val == 0.1
    assert cfg.train_dataloader.batch_size * 8 == 1024
    rates = [layer.ffn.dropout_layer.drop_prob for layer in model.backbone.layers[1:-1]]
    assert rates == sorted(rates) and rates[0] > 0 and rates[-1] == pytest.approx(0.2 * 22 / 23)
    assert getattr(model.backbone.layers[-1].ffn.dropout_layer, 'drop_prob', 0) == 0
