"""The configs by family, and what a name says of one."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from mmtr.registry import TOKEN_REDUCERS

ROOT = Path(__file__).parents[1]
SEGMENTERS = sorted((ROOT / 'configs').glob('segmenter_*.py'))
DINOV2 = sorted((ROOT / 'configs').glob('dinov2-*.py'))
DETECTORS = sorted((ROOT / 'configs').glob('cascade-mask-rcnn_*.py'))
UPERNETS = sorted((ROOT / 'configs').glob('upernet_*.py'))
#: The words for methods in names of configs that are not their classes in lower case.
WORDS = dict(TokenAdapter='tadapter')
METHODS = {WORDS.get(name, name.lower()): method for name, method in TOKEN_REDUCERS.module_dict.items()}


def read(name):
    return Config.fromfile(ROOT / 'configs' / name)


def without_weights(cfg):
    """The model on the meta device: as large as it likes."""
    register_all_modules()
    with torch.device('meta'), DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def reducer_of(cfg):
    backbone = cfg.model.backbone
    return build_token_reducer(
        backbone.get('token_reduction'),
        BackboneInfo(
            backbone.num_layers,
            backbone.embed_dims,
            num_prefix=int(backbone.get('with_cls_token', True)),
            grid=tuple(n // backbone.get('patch_size', 16) for n in backbone.img_size),
        ),
    )


def method_of(path):
    """The class that the name of a config promises."""
    return next((METHODS[part] for part in path.stem.split('_') if part in METHODS), TokenReducer)
