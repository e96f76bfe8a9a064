"""Hosts of the shared tests that differ from a plain ViT with a class token."""

import pytest

from mmtr.models.backbones import ViTDet
from mmtr.registry import TOKEN_REDUCERS


def vitdet(with_cls_token, token_reduction, **kwargs):
    """ViTDet with windows that its grids do not fill; it never has a class token.

    Asked for one, methods that read it have no case here.
    """
    if with_cls_token and token_reduction and TOKEN_REDUCERS.get(token_reduction['type']).needs_class_token:
        pytest.skip('ViTDet has no class token')
    own = dict(pretrain_img_size=48, window_size=3, global_attn_indexes=(0, 2))
    return ViTDet(token_reduction=token_reduction, **{**own, **kwargs})


vitdet.merges_apart = ViTDet.merges_apart
