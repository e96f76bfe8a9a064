"""Build the model of a config and fill it from a checkpoint, outside of a runner."""
import warnings

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.operators import check_operators
from mmtr.peft.checkpoint import put_in_frozen, weights_in

from .build_errors import in_words_of
from .checkpoint import read_checkpoint
from .hooks.coverage import converts, coverage


def without_pretrained(node):
    """The config without the pretrained weights that it would download."""
    if isinstance(node, (list, tuple)):
        return type(node)(without_pretrained(value) for value in node)
    if not isinstance(node, dict):
        return node
    dropped = {key for key, value in node.items() if key == 'pretrained' and isinstance(value, str)
               or key == 'init_cfg' and isinstance(value, dict) and value.get('type') == 'Pretrained'}
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
        UserError: It needs operators that mmcv-lite has not; see ``in_words_of``; or as the model.
    """
    with in_words_of(cfg), warnings.catch_warnings(), DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmseg')):
        warnings.simplefilter('ignore')
        # Nothing is read here; but a checkpoint of what was tuned will ask for the pretrained file.
        model = check_operators(MODELS.build(cfg.model if has_peft(cfg) else without_pretrained(cfg.model)))
    for hook in cfg.get('custom_hooks', []):
        if hook['type'] in ('TokenReductionHook', 'mmtr.TokenReductionHook'):
            apply_token_reduction(model, hook['token_reduction'], hook.get('attn_backend', 'auto'))
    model.to(device).eval()
    return model


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
    difference = coverage(model, weights)
    if difference and not converts(model, weights):
        raise UserError(f"Checkpoint '{path}' does not cover the model: {difference}.")
    model.load_state_dict(weights)
    return checkpoint.get('meta') or {}
