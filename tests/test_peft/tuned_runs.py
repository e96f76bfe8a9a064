"""A backbone of which little is tuned: its base, its configs and its frozen weights."""

import runpy

import torch

from mmtr.models.backbones import VisionTransformer

from ..conftest import TOOLS

TUNED = ('backbone.peft.', 'backbone.token_reducer.', 'decode_head.')
DAR = dict(type='DAR', bottleneck=5, compensator=3)


def base_file(path, seed=0, **settings):
    """A pretrained file of the backbone in ``tiny_segmenter``."""
    torch.manual_seed(seed)
    backbone = VisionTransformer(
        **{
            **dict(
                img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2, num_heads=2, mlp_ratio=2, final_norm=True
            ),
            **settings,
        }
    )
    backbone.init_weights()
    torch.save(dict(state_dict=backbone.state_dict()), path)
    return str(path)


def changed(config, name, text):
    """Path of a config beside ``config`` that inherits from it."""
    path = config.with_name(name)
    path.write_text(f"_base_ = '{config.name}'\n{text}\n")
    return path


def frozen(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith('backbone.') and not name.startswith(TUNED)
    }


def deploy(*args):
    runpy.run_path(str(TOOLS / 'deploy_model.py'))['main'](list(map(str, args)))
