"""Hosts of the shared tests that differ from a plain ViT with a class token."""

import pytest
import torch

from mmtr.models.backbones import ViTDet
from mmtr.registry import MODELS, TOKEN_REDUCERS

ARCH = dict(embed_dims=32, num_layers=4, num_heads=4, feedforward_channels=128)


def without_class_token(name, cfg):
    """Skip a case of a host that never has a class token, and of a method that reads it."""
    if cfg and TOKEN_REDUCERS.get(cfg['type']).needs_class_token:
        pytest.skip(f'{name} has no class token')


def knowing_positions(cfg):
    """Skip a case of a host whose attention knows the positions of queries and keys, and of a method that may not."""
    if (cfg or {}).get('type') == 'SegFormerPlusPlus':
        pytest.skip('its bias needs the positions of queries and keys')


def vitdet(with_cls_token, token_reduction, **kwargs):
    """ViTDet with windows that its grids do not fill; it never has a class token.

    Asked for one, methods that read it have no case here.
    """
    if with_cls_token:
        without_class_token('ViTDet', token_reduction)
    own = dict(pretrain_img_size=48, window_size=3, global_attn_indexes=(0, 2))
    return ViTDet(token_reduction=token_reduction, **{**own, **kwargs})


vitdet.merges_apart = ViTDet.merges_apart


def on_mmpretrain(name, cfg, patch_size=16, **settings):
    """A host of mmpretrain with the outputs of the others; drawn so that its class token looks at several sides."""
    torch.manual_seed(3)
    given = dict(arch=ARCH, img_size=(64, 96), patch_size=patch_size, out_indices=(1, 3), out_type='featmap')
    return MODELS.get(name)(**{**given, **settings}, token_reduction=cfg)


def cls_vit(cfg, patch_size=16, with_cls_token=True, **kwargs):
    """mmpretrain's ViT."""
    own = dict(layer_scale_init_value=1.0, with_cls_token=with_cls_token)
    return on_mmpretrain('ClsVisionTransformer', cfg, patch_size, **own, **kwargs)


def beitvit(cfg, patch_size=16, with_cls_token=True, **kwargs):
    """mmpretrain's BEiT; its bias of positions needs the class token."""
    knowing_positions(cfg)
    own = dict(layer_scale_init_value=1.0, with_cls_token=with_cls_token, use_rel_pos_bias=with_cls_token)
    return on_mmpretrain('BEiTViT', cfg, patch_size, **own, **kwargs)


def viteva02(cfg, patch_size=16, with_cls_token=True, **kwargs):
    """mmpretrain's EVA-02."""
    return on_mmpretrain('ViTEVA02', cfg, patch_size, with_cls_token=with_cls_token, sub_ln=True, **kwargs)


def vitsam(cfg, patch_size=16, with_cls_token=True, **kwargs):
    """mmpretrain's encoder of SAM, without its neck, with windows that its grids do not fill."""
    knowing_positions(cfg)
    if with_cls_token:
        without_class_token('ViTSAM', cfg)
    own = dict(arch=dict(ARCH, global_attn_indexes=(0, 2)), window_size=3, out_channels=0)
    return on_mmpretrain('ViTSAM', cfg, patch_size, **own, **kwargs)


ON_MMPRETRAIN = (cls_vit, beitvit, viteva02, vitsam)
