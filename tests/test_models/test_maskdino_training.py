"""Losses, targets and gradients of MaskDINO on single batches."""

import mmcv.ops.multi_scale_deform_attn as deform_attn
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.structures import PixelData

from mmtr import UserError
from mmtr.models.maskdino import layers
from mmtr.models.maskdino.targets import targets_of
from tests.drawn_coco import SIZE

from .maskdino_runs import LAYERS, batch_of, build, dataset_cfg, losses_of, model_cfg

pytestmark = pytest.mark.usefixtures('scope_of_mmdet')
LOSSES = ('cls', 'bbox', 'giou', 'mask', 'dice')


@pytest.mark.parametrize('settings', [{}, dict(two_stage=False, initial_boxes='no', softmax=True)])
def test_every_output_has_every_loss_and_every_parameter_a_gradient(coco, settings):
    model, dataset = build(**settings), DATASETS.build(dataset_cfg(coco))
    losses = losses_of(model, batch_of(dataset, 1, 2))
    places = ['', *(f'd{i}.' for i in range(LAYERS))]
    denoised = [f'{place}dn_' for place in places]
    # In the release (criterion.py, SetCriterion.forward) the first of the auxiliary outputs has denoising's losses only
    # beside 'interm_outputs', which two-stage selection alone gives.
    places += denoised[:1] + denoised[2:] if settings else [*denoised, 'enc_']
    assert losses.keys() == {f'{place}loss_{name}' for place in places for name in LOSSES}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    absent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not absent


def test_losses_are_of_the_queries_and_of_the_slots_before_them(coco):
    model, batch = build(), batch_of(DATASETS.build(dataset_cfg(coco)), 2, 3)
    head, seen, forward, outputs = model.panoptic_head, [], model.panoptic_head.forward, []
    head.forward = lambda *args, **kwargs: outputs.append(forward(*args, **kwargs)) or outputs[-1]
    head.loss_of.register_forward_hook(lambda module, args, losses: seen.append(args))
    losses_of(model, batch)
    ((layers, encoded, noisy),) = outputs
    assert noisy.content.shape[1] == 8 and noisy.num_groups == 2  # four objects at most, ten slots
    for i, layer in enumerate(layers):
        for (found, _, indices, count), part in zip(seen[2 * i : 2 * i + 2], (slice(8, None), slice(8))):
            assert all(torch.equal(ours, whole[:, part]) for ours, whole in zip(found, layer))
            assert count == (6 if part.start else 12)  # six objects, each in two groups
            assert [len(queries) for queries, _ in indices] == ([2, 4] if part.start else [4, 8])
    assert seen[-1][0] is encoded and len(seen) == 2 * len(layers) + 1


@pytest.mark.parametrize('denoising', [None, dict(num_slots=10)])
@pytest.mark.parametrize('settings', [{}, dict(two_stage=False, initial_boxes='no', softmax=True)])
def test_images_without_objects_train(coco, settings, denoising):
    model, dataset = build(denoising=denoising, **settings), DATASETS.build(dataset_cfg(coco))
    assert len(batch_of(dataset, 0)['data_samples'][0].gt_instances) == 0
    losses = losses_of(model, batch_of(dataset, 0, 0))
    assert losses.keys() == losses_of(model, batch_of(dataset, 0, 2)).keys()
    assert all(loss.isfinite() for loss in losses.values())
    for name, loss in losses.items():
        assert (loss > 0) == (name.endswith('loss_cls') and 'dn' not in name)
    sum(losses.values()).backward()
    absent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not absent


def test_crowds_are_no_objects_and_a_pixel_is_one(coco):
    model, dataset = build(), DATASETS.build(dataset_cfg(coco))
    batch = batch_of(dataset, 3)
    masks = batch['data_samples'][0].gt_instances.masks.masks
    assert sorted(masks.sum((1, 2)))[0] == 1 and len(masks) == 4 and masks.sum((1, 2)).max() < SIZE**2 / 2
    losses = losses_of(model, batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_targets_are_shares_of_the_padded_image(coco):
    model, dataset = build(things=2, stuff=2), DATASETS.build(dataset_cfg(coco, 'panoptic'))
    batch = batch_of(dataset, 2)
    sample = batch['data_samples'][0]
    # Shorter and narrower than what it is padded to.
    batch['inputs'][0] = batch['inputs'][0][:, :30, :50]
    sample.gt_instances.masks = sample.gt_instances.masks.crop(np.array([0, 0, 50, 30]))
    sample.gt_sem_seg = PixelData(sem_seg=sample.gt_sem_seg.sem_seg[:, :30, :50])
    sample.set_metainfo(dict(img_shape=(30, 50)))
    data = model.data_preprocessor(batch, training=True)
    (target,) = targets_of(data['data_samples'], 2, 2, 'cpu')
    assert target.masks.shape == (4, 32, 64) and not target.masks[:, 30:].any() and not target.masks[:, :, 50:].any()
    assert target.labels.tolist()[2:] == [2, 3] and set(target.labels.tolist()[:2]) <= {0, 1}
    for box, mask in zip(target.bboxes[2:], target.masks[2:]):
        rows, columns = mask.any(1).nonzero().squeeze(1), mask.any(0).nonzero().squeeze(1)
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        expected = torch.stack(((left + right) / 128, (top + bottom) / 64, (right - left) / 64, (bottom - top) / 32))
        torch.testing.assert_close(box, expected)
    things = data['data_samples'][0].gt_instances.bboxes / torch.tensor((64, 32, 64, 32))
    torch.testing.assert_close(target.bboxes[:2, :2], (things[:, :2] + things[:, 2:]) / 2)
    torch.testing.assert_close(target.bboxes[:2, 2:], things[:, 2:] - things[:, :2])


@pytest.mark.parametrize('task, key', [('instances', 'pad_mask'), ('semantic', 'pad_seg')])
def test_masks_that_are_not_padded_are_refused(coco, task, key):
    model = build(stuff=2)
    setattr(model.data_preprocessor, key, False)
    model.data_preprocessor.pad_size_divisor = 96
    with pytest.raises(UserError, match=f'data_preprocessor.{key}=True'):
        losses_of(model, batch_of(DATASETS.build(dataset_cfg(coco, task)), 2))


def test_stuff_has_no_box_loss_unless_it_is_asked_for(coco):
    batch = batch_of(DATASETS.build(dataset_cfg(coco, 'panoptic')), 0)  # stuff alone
    for stuff_boxes in (False, True):
        losses = losses_of(build(stuff=2, stuff_boxes=stuff_boxes), batch)
        assert losses['loss_mask'] > 0 and losses['dn_loss_mask'] > 0
        for name in ('loss_bbox', 'loss_giou', 'dn_loss_bbox', 'enc_loss_giou'):
            assert (losses[name] > 0) == stuff_boxes


def test_on_a_cpu_deformable_attention_is_ours(coco, monkeypatch):
    calls = []
    ours = layers.deformable_attention

    def refuse(*args):
        raise AssertionError("mmcv's was called")

    monkeypatch.setattr(deform_attn.MultiScaleDeformableAttnFunction, 'apply', refuse)
    monkeypatch.setattr(deform_attn, 'multi_scale_deformable_attn_pytorch', refuse)
    monkeypatch.setattr(layers, 'deformable_attention', lambda *args: calls.append(len(args)) or ours(*args))
    losses_of(build(), batch_of(DATASETS.build(dataset_cfg(coco)), 1))
    assert len(calls) == 2 * LAYERS


def test_an_image_does_not_depend_on_its_batch(coco):
    model = build(test_cfg=dict(instance_on=True, panoptic_on=True, semantic_on=True, score_thr=0.0), stuff=2).eval()
    dataset = DATASETS.build(dataset_cfg(coco, 'panoptic', test=True))
    with torch.no_grad():
        both = model.test_step(batch_of(dataset, 1, 3))
        alone = [model.test_step(batch_of(dataset, i))[0] for i in (1, 3)]
    for a, b in zip(both, alone):
        torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.pred_instances.bboxes, b.pred_instances.bboxes, rtol=1e-4, atol=1e-2)
        assert (a.pred_sem_seg.sem_seg == b.pred_sem_seg.sem_seg).float().mean() > 0.99
        assert a.pred_panoptic_seg.sem_seg.shape == a.pred_sem_seg.sem_seg.shape == (1, SIZE, SIZE)


def with_cropr(num_classes):
    """A plain transformer with a pyramid of five maps, whose token reduction is learned."""
    cfg = model_cfg(in_channels=[32] * 5, pixel_decoder=dict(num_extra_levels=0, num_layers=1))
    cropr = dict(type='Cropr', task='multilabel', num_classes=num_classes, layers=(0, 1), r=[0.3, 0.3])
    cfg.backbone = dict(
        type='mmtr.EVA02',
        img_size=(SIZE, SIZE),
        patch_size=8,
        embed_dims=32,
        num_layers=4,
        num_heads=2,
        with_cls_token=False,
        token_reduction=cropr,
    )
    cfg.neck = dict(type='mmtr.SimpleFeaturePyramid', in_channels=32, out_channels=32)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def test_losses_of_a_learned_reducer_are_among_the_losses(coco):
    losses = losses_of(with_cropr(2), batch_of(DATASETS.build(dataset_cfg(coco)), 1, 2))
    assert {f'reducer.layer_0{i}.loss_bce' for i in (0, 1)} == {name for name in losses if 'reducer' in name}
    assert all(loss.isfinite() for loss in losses.values()) and 'enc_loss_mask' in losses
    with pytest.raises(UserError, match='token_reduction.num_classes=3, but the model has 2 classes'):
        with_cropr(3)


def test_half_precision_stays_in_the_backbone(coco):
    model, batch = build(), batch_of(DATASETS.build(dataset_cfg(coco)), 1, 2)
    model.backbone.eval()
    torch.manual_seed(1)
    full = losses_of(model, batch)
    torch.manual_seed(1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = losses_of(model, batch)
    for name, loss in half.items():
        assert loss.dtype == torch.float32 and float(loss) == pytest.approx(float(full[name]), rel=0.2, abs=0.05), name
