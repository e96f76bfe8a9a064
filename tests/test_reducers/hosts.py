"""Hosts of the shared tests that differ from a plain ViT with a class token."""

import pytest

from mmtr.models.backbones import ViTDet
from mmtr.registry import TOKEN_REDUCERS


def vitdet(with_cls_token, token_reduction, **kwargs):
    """ViTDet with windows that its grids do not fill; it never has a class token.

    Asked for one, methods that read it have no case here; nor has one that its relative positions refuse.
    """
    method = TOKEN_REDUCERS.get(token_reduction['type']) if token_reduction else None
    if method and (method.needs_class_token and with_cls_token or method.every_stage):
        pytest.skip(f'{method.__name__} cannot work in ViTDet')
    own = dict(pretrain_img_size=48, window_size=3, global_attn_indexes=(0, 2))
    return ViTDet(token_reduction=token_reduction, **{**own, **kwargs})
