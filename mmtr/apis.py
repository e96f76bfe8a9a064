"""Add token reduction, or parameter-efficient fine-tuning (``peft``), to a model that is already built."""

from typing import Optional

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.backbone import TunableBackbone
from mmtr.models.backbones.common.twins import backbones_in_words, make_twin, replace_with_twins
from mmtr.ops.attention import check_backend
from mmtr.peft.freezing import table
from mmtr.registry import MODELS


def apply_token_reduction(model: nn.Module, token_reduction: Optional[dict], attn_backend: str = 'auto') -> nn.Module:
    """Reduce tokens in a stock or mmtr model, in place; its stock attention becomes fused attention where possible.

    Args:
        model: A segmentor, detector or classifier; or a backbone alone (then use the returned backbone).
        token_reduction: ``dict(type=..., **settings)``, or None to remove a reduction.
        attn_backend: ``auto | sdpa | xformers | math``, the kernel of attention modules that are still stock.

    Returns:
        ``model``, or the mmtr backbone that shares the weights of a stock backbone.

    Raises:
        UserError: No backbone in ``model`` can be reduced, or a setting does not fit the backbone or its model.
    """
    model, backbones = _reducible(model, attn_backend, 'Tokens cannot be reduced')
    before = [(backbone.token_reducer, backbone.token_reduction) for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.set_token_reduction(token_reduction)
        _check_reduction(model, backbones)
    except UserError:
        for backbone, (reducer, reduction) in zip(backbones, before):
            backbone.token_reducer, backbone.token_reduction = reducer, reduction
        raise
    return model


def apply_peft(model: nn.Module, peft: dict, attn_backend: str = 'auto') -> nn.Module:
    """Freeze the backbone of a stock or mmtr model at its current weights and add trainable ``peft``, in place.

    Logs the numbers of frozen and trained parameters. Build the optimizer afterwards, from the parameters with
    ``requires_grad``.

    Args:
        model: A segmentor, detector or classifier; or a backbone alone (then use the returned backbone). Its weights
            are loaded already; a runner does not initialise those of the backbone again.
        peft: ``dict(type=..., **settings)``, see docs/peft.md.
        attn_backend: ``auto | sdpa | xformers | math``, the kernel of attention modules that are still stock.

    Returns:
        ``model``, or the mmtr backbone that shares the weights of a stock backbone.

    Raises:
        UserError: No backbone in ``model`` can be tuned, or one has a ``peft`` already; ``model`` is wrapped for
            data-parallel training, which would miss the new parameters; or a setting does not fit the backbone.
    """
    if is_model_wrapper(model):
        raise UserError(f'{type(model).__name__} would miss what apply_peft adds: apply it before it is wrapped.')
    if peft is None:
        raise UserError("peft=None trains nothing beside the frozen weights: give one such as dict(type='LoRA').")
    model, backbones = _reducible(model, attn_backend, 'Nothing can be tuned beside the weights')
    for backbone in backbones:
        if backbone.peft is not None:
            raise UserError(
                f'The backbone has a peft already, {type(backbone.peft).__name__}: build the model without '
                'one to apply another.'
            )
    for backbone in backbones:
        backbone.tune(peft)
    print_log(f'Parameters:\n{table(model)}', 'current')
    return model


def _reducible(model, attn_backend, failure):
    """``model`` with stock modules replaced by twins, and its backbones.

    Args:
        failure: Beginning of the error where there is no such backbone.
    """
    check_backend(attn_backend)
    if is_model_wrapper(model):
        return model, _reducible(model.module, attn_backend, failure)[1]
    model = make_twin(model, attn_backend) or model
    replace_with_twins(model, attn_backend)
    backbones = [module for module in model.modules() if hasattr(module, 'set_token_reduction')]
    if not backbones:
        found = type(getattr(model, 'backbone', model))
        # Several libraries have a VisionTransformer.
        own = [kind for kind in MODELS.module_dict.values() if issubclass(kind, TunableBackbone)]
        raise UserError(
            f'{failure} in a {found.__name__} of {found.__module__.partition(".")[0]}: use a model with '
            f'the backbone {backbones_in_words(own)}.'
        )
    return model, backbones


def _check_reduction(model, backbones):
    """Raise a ``UserError`` where the model around ``backbones`` cannot work with their reducers."""
    owners = [module for module in model.modules() if hasattr(module, 'check_reduction')]
    for owner in owners:
        owner.check_reduction()
    if not owners and any(backbone.token_reducer.restores_late for backbone in backbones):
        raise UserError(
            "token_reduction.restore_at='after_head' needs a segmentor that gives logits back, "
            f"type='mmtr.EncoderDecoder', and this is a {type(model).__name__} of "
            f"{type(model).__module__.partition('.')[0]}: use that, or set restore_at='before_norm'."
        )
