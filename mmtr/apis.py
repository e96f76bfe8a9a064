"""Token reduction for a model that already exists."""
from typing import Optional

from mmengine.model import is_model_wrapper
from torch import nn

from mmtr.errors import UserError
from mmtr.models.twins import make_twin, replace_with_twins
from mmtr.ops.attention import check_backend


def apply_token_reduction(model: nn.Module, token_reduction: Optional[dict], attn_backend: str = 'auto') -> nn.Module:
    """Reduce tokens in a stock or mmtr model, in place; all attention that can be fused is.

    Args:
        model: A segmentor, detector or classifier, or a backbone by itself (then use what is returned).
        token_reduction: ``dict(type=..., **settings)``, or None to take a reduction away.
        attn_backend: ``auto | sdpa | xformers | math``, for modules that are stock until now.

    Returns:
        ``model``, or the mmtr backbone that shares the weights of a stock backbone.

    Raises:
        UserError: No backbone in it can be reduced; or as the backbone.
    """
    check_backend(attn_backend)
    if is_model_wrapper(model):
        apply_token_reduction(model.module, token_reduction, attn_backend)
        return model
    model = make_twin(model, attn_backend) or model
    replace_with_twins(model, attn_backend)
    backbones = [module for module in model.modules() if hasattr(module, 'set_token_reduction')]
    if not backbones:
        found = type(getattr(model, 'backbone', model))
        # Several libraries have a VisionTransformer.
        raise UserError(
            f'Tokens cannot be reduced in a {found.__name__} of {found.__module__.partition(".")[0]}: use a model with '
            'the backbone VisionTransformer of mmseg or mmtr, SwinTransformer of mmseg, mmdet or mmtr, mmtr.DINOv2 or '
            'mmtr.EVA02.')
    before = [backbone.token_reducer for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.set_token_reduction(token_reduction)
        _check_reduction(model, backbones)
    except UserError:
        for backbone, reducer in zip(backbones, before):
            backbone.token_reducer = reducer
        raise
    return model


def _check_reduction(model, backbones):
    """Raise a ``UserError`` where the model around ``backbones`` cannot work with their reducers."""
    owners = [module for module in model.modules() if hasattr(module, 'check_reduction')]
    for owner in owners:
        owner.check_reduction()
    if not owners and any(backbone.token_reducer.restore_at == 'after_head' for backbone in backbones):
        raise UserError("token_reduction.restore_at='after_head' needs a segmentor that gives logits back, "
                        f"type='mmtr.EncoderDecoder', and this is a {type(model).__name__} of "
                        f"{type(model).__module__.partition('.')[0]}: use that, or set restore_at='before_norm'.")
