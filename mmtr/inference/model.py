"""Build the model of a config and fill it from a checkpoint, outside of a runner."""

import copy
import warnings
from pathlib import Path
from typing import Optional, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from mmtr.checks.building import in_words_of
from mmtr.checks.data import datasets_in, loads_annotations
from mmtr.checks.heads import check_head_keys, check_heads
from mmtr.config.files import load_config, merge_options
from mmtr.config.model import model_of
from mmtr.config.pure_python import with_names
from mmtr.config.types import type_name
from mmtr.engine.hooks.token_reduction import hooks_of
from mmtr.errors import UserError
from mmtr.operators import check_operators
from mmtr.weights.files import read_checkpoint
from mmtr.weights.fit import uncovered
from mmtr.weights.tuned import put_in_frozen, weights_in

from .inferencers import dataset_meta, reads_images


def without_pretrained(node):
    """The config without the pretrained weights that it would download."""
    if isinstance(node, (list, tuple)):
        return type(node)(without_pretrained(value) for value in node)
    if not isinstance(node, dict):
        return node
    dropped = {
        key
        for key, value in node.items()
        if key == 'pretrained'
        and isinstance(value, str)
        or key == 'init_cfg'
        and isinstance(value, dict)
        and type_name(value.get('type')) in ('Pretrained', 'PretrainedInit')
    }
    return type(node)({key: without_pretrained(value) for key, value in node.items() if key not in dropped})


def image_channels(model: nn.Module) -> int:
    """How many channels the images of a model, or of a backbone, have: those of its first convolution."""
    backbone = getattr(model, 'backbone', model)
    return next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), 3)


def has_peft(cfg) -> bool:
    """Whether the backbone of a config has a ``peft``."""
    return bool(((cfg.get('model') or {}).get('backbone') or {}).get('peft'))


def build_model(cfg, device: str = 'cpu') -> nn.Module:
    """The model of a config, reduced by its ``TokenReductionHook`` if it has one, in eval mode.

    Raises:
        UserError: It needs operators that mmcv-lite has not; see ``in_words_of`` and ``check_heads``; or as the model.
    """
    with (
        in_words_of(cfg),
        warnings.catch_warnings(),
        DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'),
    ):
        warnings.simplefilter('ignore')
        # Nothing is read here; but a checkpoint of what was tuned will ask for the pretrained file.
        check_head_keys(model_of(cfg))
        model = MODELS.build(model_of(cfg) if has_peft(cfg) else without_pretrained(model_of(cfg)))
        check_heads(check_operators(model))
    for hook in hooks_of(cfg):
        hook.put_into(model)
    model.to(device).eval()
    return model


def init_model(
    config: Union[str, Path, Config],
    checkpoint: Optional[str] = None,
    device: Optional[str] = None,
    cfg_options: Optional[dict] = None,
) -> nn.Module:
    """The model of any config of mmseg, mmdet or mmtr, with its token reduction, for their ``inference_*`` functions.

    As their ``init_model`` and ``init_detector``, but the checkpoint must cover the model, and a ``TokenReductionHook``
    may be of a method that was trained. ``apply_token_reduction`` changes what the model reduces.

    Args:
        config: A file, a packaged config such as ``'mmtr::NAME.py'``, or an mmengine ``Config``.
        checkpoint: A ``.pth`` or ``.safetensors`` file; None: random weights.
        device: None: the GPU if there is one.
        cfg_options: Settings that replace those of the config, by dotted keys.

    Raises:
        UserError: One of them is not there, cannot be read or does not fit the others.
    """
    cfg = with_names(copy.deepcopy(config)) if isinstance(config, Config) else load_config(str(config))
    merge_options(cfg, cfg_options or {})
    if not cfg.get('model'):
        raise UserError(f"Config '{cfg.filename}' has no model.")
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    model = build_model(cfg)
    meta = load_weights(model, checkpoint) if checkpoint else {}
    if reads_images(cfg):
        model.dataset_meta, _ = dataset_meta(cfg, meta, model)
        # Where mmseg's functions look for what reads an image, and change it.
        steps = cfg.get('test_pipeline') or next(datasets_in(cfg.test_dataloader.dataset)).pipeline
        cfg.test_pipeline = copy.deepcopy([step for step in steps if not loads_annotations(step)])
    model.cfg = cfg
    return model.to(device or get_device())


def read_weights(path: str, model: nn.Module, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """The ``state_dict`` of a checkpoint file for ``model``, without the prefix of data-parallel training.

    Raises:
        UserError: The file cannot be read; or it holds only what was tuned, and see ``put_in_frozen``.
    """
    return weights_in(_read(path, model, device))


def _read(path, model, device='cpu'):
    checkpoint = read_checkpoint(path, device)
    put_in_frozen(model, checkpoint, path)
    return checkpoint


def load_weights(model: nn.Module, path: str) -> dict:
    """Fill ``model`` from a checkpoint file, and return the file's ``meta``, empty if it has none.

    Raises:
        UserError: The file cannot be read, or does not cover the model exactly.
    """
    checkpoint = _read(path, model)
    weights = weights_in(checkpoint)
    difference = uncovered(model, weights)
    if difference:
        raise UserError(f"Checkpoint '{path}' does not cover the model: {difference}.")
    model.load_state_dict(weights)
    return checkpoint.get('meta') or {}
