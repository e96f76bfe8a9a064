"""Healing of detectors: mmdet's two stages with masks, a cascade of them, and an EoMT, without labels."""

import copy

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS, DefaultScope

import mmtr.models.detectors  # noqa: F401
import mmtr.models.eomt  # noqa: F401
from mmtr import apply_token_reduction
from mmtr.config.files import load_config
from mmtr.models.distillation import Healing

SIZE = 64


def mask_rcnn():
    """mmdet's Mask R-CNN on a small Swin, in which a reduction is put by the API."""
    cfg = load_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py').model
    cfg.backbone.update(embed_dims=16, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, init_cfg=None)
    cfg.neck.in_channels = [16, 32, 64, 128]
    cfg.roi_head.bbox_head.fc_out_channels = 32
    return cfg, 1.0, dict(type='GridPool', ratio=0.5)


def cascade():
    """The Cascade Mask R-CNN of a small ViTDet."""
    cfg = load_config('mmtr::cascade-mask-rcnn_vitdet-b_coco.py').model
    cfg.backbone.update(embed_dims=32, num_heads=2, img_size=SIZE, window_size=2, drop_path_rate=0.0, pretrained=None)
    cfg.neck.in_channels = 32
    return cfg, 1.0, dict(type='GridPool', ratio=0.5)


def eomt():
    """An EoMT, whose backbone returns no maps."""
    cfg = load_config('mmtr::eomt_dinov2-s_coco-panoptic-640.py').model
    cfg.backbone.update(embed_dims=32, num_heads=2, img_size=SIZE, patch_size=8, drop_path_rate=0.0, init_cfg=None)
    cfg.panoptic_head.update(in_channels=32, num_queries=5)
    return cfg, 0.0, dict(type='GridPool', ratio=0.5, layers=(2, 8))


@pytest.mark.parametrize('model', [mask_rcnn, pytest.param(cascade, marks=pytest.mark.slow), eomt])
def test_a_detector_agrees_with_itself_until_it_is_reduced(model):
    torch.manual_seed(0)
    cfg, features, reduction = model()
    for test_cfg in [cfg.test_cfg.rpn] if 'rpn_head' in cfg else []:
        test_cfg.update(nms_pre=20, max_per_img=4)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = apply_token_reduction(MODELS.build(cfg), None).train()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.dim() < 2:  # LayerScale and biases, which are almost nothing at first
                parameter.add_(0.1 * torch.randn_like(parameter))
    teacher = copy.deepcopy(model)
    samples = [DetDataSample(metainfo=dict(img_shape=(SIZE, SIZE), batch_input_shape=(SIZE, SIZE)))]
    images = torch.randn(1, 3, SIZE, SIZE)
    healing = Healing(teacher, features, 1.0, False)
    losses = healing.losses(model, model.loss, images, samples)
    assert losses.keys() == {'healing.loss_logits', *['healing.loss_features'] * bool(features)}
    assert max(losses.values()) < 1e-6
    apply_token_reduction(model, reduction)
    losses = healing.losses(model.train(), model.loss, images, samples)
    assert min(losses.values()) > 1e-6
    sum(losses.values()).backward()
    assert next(model.backbone.parameters()).grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
