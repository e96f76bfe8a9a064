"""Build the model of a config and load a checkpoint into it, without a runner."""

import copy
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from mmtr.analysis.gain import warn_of_small_gains
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


def without_pretrained(node: Any) -> Any:
    """Copy a config, or any value in it, without the keys that load pretrained weights."""
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
    """Number of channels of the images of a model or backbone: the input channels of its first convolution, else 3."""
    backbone = getattr(model, 'backbone', model)
    return next((module.in_channels for module in backbone.modules() if isinstance(module, nn.Conv2d)), 3)


def has_peft(cfg: Config) -> bool:
    """Whether the backbone in a config has a ``peft``."""
    return bool(((cfg.get('model') or {}).get('backbone') or {}).get('peft'))


def build_model(cfg: Config, device: str = 'cpu') -> nn.Module:
    """Build the model of a config in eval mode, and apply its ``TokenReductionHook`` if it has one.

    Raises:
        UserError: The model needs operators that mmcv-lite lacks, or a setting is wrong; see ``in_words_of``,
            ``check_heads`` and ``warn_of_small_gains``.
    """
    with (
        in_words_of(cfg),
        warnings.catch_warnings(),
        DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'),
    ):
        warnings.simplefilter('ignore')
        described = model_of(cfg)
        check_head_keys(described)
        # This reads no file. With a peft the keys stay: its checkpoints need the pretrained file later.
        model = MODELS.build(described if has_peft(cfg) else without_pretrained(described))
        check_heads(check_operators(model))
    for hook in hooks_of(cfg):
        hook.put_into(model)
    warn_of_small_gains(model)
    model.to(device).eval()
    return model


def init_model(
    config: Union[str, Path, Config],
    checkpoint: Optional[str] = None,
    device: Optional[str] = None,
    cfg_options: Optional[dict] = None,
) -> nn.Module:
    """Build the model of a config of mmseg, mmdet or mmtr, with its token reduction, for ``inference_*`` functions.

    This does what their ``init_model`` and ``init_detector`` do, but the checkpoint must cover the model, and a
    ``TokenReductionHook`` may use a trained method. ``apply_token_reduction`` changes the reduction of the model.

    Args:
        config: A file, a packaged config such as ``'mmtr::NAME.py'``, or an mmengine ``Config``.
        checkpoint: A ``.pth`` or ``.safetensors`` file; None: random weights.
        device: Device of the model; None: the GPU if there is one.
        cfg_options: Settings that replace those of the config, by dotted keys.

    Raises:
        UserError: Config or checkpoint are not there, cannot be read or do not fit each other.
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
        # mmseg's functions read this pipeline and change it.
        steps = cfg.get('test_pipeline') or next(datasets_in(cfg.test_dataloader.dataset)).pipeline
        cfg.test_pipeline = copy.deepcopy([step for step in steps if not loads_annotations(step)])
    model.cfg = cfg
    return model.to(device or get_device())


def read_weights(path: str, model: nn.Module, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """Read the ``state_dict`` of a checkpoint file for ``model``, without the prefix of data-parallel training.

    Frozen weights that the file lacks are added: see ``put_in_frozen``.

    Raises:
        UserError: The file cannot be read; or see ``put_in_frozen``.
    """
    return weights_in(_read(path, model, device))


def _read(path, model, device='cpu'):
    checkpoint = read_checkpoint(path, device)
    put_in_frozen(model, checkpoint, path)
    return checkpoint


def load_weights(model: nn.Module, path: str) -> dict:
    """Load a checkpoint file into ``model``, and return the file's ``meta``, empty if it has none.

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
