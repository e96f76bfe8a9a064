"""MaskDINO from drawn scenes to a trained and tested model: instances, panoptic and semantic maps."""

import copy
import json
from pathlib import Path

import mmcv.ops.multi_scale_deform_attn as deform_attn
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from PIL import Image

from mmtr import UserError
from mmtr.models import detectors  # noqa: F401
from mmtr.models.maskdino import layers
from mmtr.models.maskdino.targets import targets_of
from tests.drawn_coco import METAINFO, PANOPTIC, SIZE, draw_coco

LOSSES = ('cls', 'bbox', 'giou', 'mask', 'dice')
LAYERS = 2
SWIN = dict(type='mmtr.SwinTransformer', embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4)
#: Small ones, all with maps of as many channels.
BACKBONES = dict(
    resnet=dict(type='ResNet', depth=18, base_channels=16, stem_channels=16, norm_cfg=dict(type='BN')),
    swin=SWIN,
    # 2x2 of the 4x4 tokens of each window, in the second of the two blocks of stage 1.
    reduced=dict(SWIN, token_reduction=dict(type='TokenAdapter', stage=1, ratio=0.5, layers=(1, 2))),
)


@pytest.fixture(autouse=True)
def scope_of_mmdet():
    register_all_modules()


@pytest.fixture
def coco(tmp_path):
    return draw_coco(tmp_path / 'coco')


def model_cfg(things=2, stuff=0, test_cfg=None, backbone='resnet', **head):
    """20 queries, two layers each."""
    return Config(
        dict(
            model=dict(
                type='mmtr.MaskDINO',
                data_preprocessor=dict(
                    type='DetDataPreprocessor',
                    mean=[110.0] * 3,
                    std=[60.0] * 3,
                    bgr_to_rgb=True,
                    pad_size_divisor=32,
                    pad_mask=True,
                    pad_seg=True,
                ),
                backbone=BACKBONES[backbone],
                panoptic_head={
                    **dict(
                        type='mmtr.MaskDINOHead',
                        in_channels=[16, 32, 64, 128],
                        num_things_classes=things,
                        num_stuff_classes=stuff,
                        channels=64,
                        num_queries=20,
                        pixel_decoder=dict(num_layers=LAYERS, feedforward_channels=64),
                        decoder=dict(num_layers=LAYERS, feedforward_channels=64),
                        denoising=dict(num_slots=10),
                        loss=dict(num_points=256),
                    ),
                    **head,
                },
                test_cfg=test_cfg or {},
            )
        )
    ).model


def build(**kwargs):
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(**kwargs))
    model.init_weights()
    return model


def dataset_cfg(root, task='instances', test=False):
    load = dict(type='LoadImageFromFile')
    pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
    if task == 'semantic':
        return dict(
            type='BaseSegDataset',
            data_root=str(root),
            metainfo=dict(classes=PANOPTIC['classes']),
            data_prefix=dict(img_path='images', seg_map_path='semantic'),
            test_mode=test,
            pipeline=[load, dict(type='LoadAnnotations', with_bbox=False, with_label=False, with_seg=True), pack],
        )
    common = dict(data_root=str(root), ann_file=f'{task}.json', test_mode=test)
    if task == 'panoptic':
        return dict(
            common,
            type='CocoPanopticDataset',
            metainfo=PANOPTIC,
            data_prefix=dict(img='images/', seg='panoptic/'),
            pipeline=[load, dict(type='LoadPanopticAnnotations'), pack],
        )
    return dict(
        common,
        type='CocoDataset',
        metainfo=METAINFO,
        data_prefix=dict(img='images/'),
        pipeline=[load, dict(type='LoadAnnotations', with_bbox=True, with_mask=True), pack],
    )


def batch_of(dataset, *indices):
    return pseudo_collate([dataset[i] for i in indices])


def losses_of(model, batch):
    return model(**model.data_preprocessor(copy.deepcopy(batch), training=True), mode='loss')


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


@pytest.mark.parametrize(
    'head, said',
    [
        (dict(channels=40), 'channels=40 must be a multiple of 32'),
        (dict(decoder=dict(num_heads=5)), 'of the number of heads, 5 and 8'),
        (dict(initial_boxes='mask'), "initial_boxes='mask' is unknown: choose 'no', 'mask2box', 'bitmask'"),
        (dict(two_stage=False), "initial_boxes='bitmask' needs two_stage=True"),
        (dict(pixel_decoder=dict(num_encoder_levels=5)), 'num_encoder_levels=5, but the backbone has 4 maps'),
        (dict(pixel_decoder=dict(feature_order='high')), "feature_order='high' is unknown: choose 'low2high' or"),
    ],
)
def test_settings_that_cannot_work_are_refused(head, said):
    with pytest.raises(UserError, match=said):
        build(**head)


def test_a_label_that_is_no_class_stops_the_run(coco, tmp_path, tool):
    for name in (coco / 'semantic').iterdir():
        Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(name)
    run_cfg(coco, tmp_path / 'work', 'semantic', iterations=1).dump(tmp_path / 'config.py')
    status, said = tool('train', tmp_path / 'config.py')
    assert status == 2 and 'holds the label 9, but labels must be 0 to 3' in said


def use_category_99(data, backbone):
    path = Path(data.data_root, data.ann_file)
    content = json.loads(path.read_text())
    content['annotations'][0]['category_id'] = 99
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'task, spoil, said',
    [
        (
            'instances',
            use_category_99,
            "instances.json' has annotations of category 99, which is none of its 2 categories",
        ),
        (
            'instances',
            lambda data, backbone: data.update(metainfo=dict(classes=('box', 'ball'))),
            "which does not have 'ball': set metainfo=dict(classes=...) of the data set",
        ),
        (
            'instances',
            lambda data, backbone: data.update(ann_file='panoptic.json'),
            "panoptic.json' holds panoptic segments, but CocoDataset reads instances",
        ),
        (
            'panoptic',
            lambda data, backbone: data.update(ann_file='instances.json'),
            "instances.json' holds instances, but CocoPanopticDataset reads panoptic",
        ),
        (
            'panoptic',
            lambda data, backbone: Path(data.data_root, 'panoptic', '1.png').unlink(),
            '1 of 4 panoptic label maps are not there',
        ),
        (
            'instances',
            lambda data, backbone: backbone.token_reduction.update(ratio=0.9),
            'token_reduction.ratio=0.9 takes 4 of 4 rows of the 4x4 patch grid',
        ),
    ],
)
def test_what_cannot_work_stops_the_run_in_one_sentence(coco, tmp_path, tool, task, spoil, said):
    cfg = run_cfg(coco, tmp_path / 'work', task, iterations=1, backbone='reduced')
    spoil(cfg.train_dataloader.dataset, cfg.model.backbone)
    cfg.dump(tmp_path / 'config.py')
    status, words = tool('train', tmp_path / 'config.py')
    assert status == 2 and said in words and words.count('\n') == 1
    assert not (tmp_path / 'work').exists()


def run_cfg(root, work_dir, task, iterations, backbone='resnet', lr=1e-3):
    """Config of a whole run: one set of images, to train on and to be tested on."""
    stuff = 0 if task == 'instances' else 2
    head = dict(things=2, stuff=stuff, test_cfg=dict(instance_on=task != 'semantic', panoptic_on=task == 'panoptic'))
    if task == 'semantic':
        head = dict(
            things=0,
            stuff=4,
            stuff_boxes=True,
            two_stage=False,
            initial_boxes='no',
            softmax=True,
            test_cfg=dict(instance_on=False, semantic_on=True, temperature=None),
        )
    metric = dict(
        instances=dict(type='CocoMetric', ann_file=str(root / 'instances.json'), metric=['bbox', 'segm']),
        panoptic=dict(
            type='CocoPanopticMetric', ann_file=str(root / 'panoptic.json'), seg_prefix=str(root / 'panoptic'), nproc=1
        ),
        semantic=dict(type='SemSegMetric', iou_metrics=['mIoU']),
    )[task]
    test = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset_cfg(root, task, test=True),
    )
    return Config(
        dict(
            default_scope='mmdet',
            work_dir=str(work_dir),
            custom_imports=dict(imports=['mmtr.models.detectors']),
            model=model_cfg(backbone=backbone, **head).to_dict(),
            randomness=dict(seed=0),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                dataset=dataset_cfg(root, task),
            ),
            val_dataloader=test,
            test_dataloader=test,
            val_evaluator=metric,
            test_evaluator=metric,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations),
            val_cfg=dict(type='ValLoop'),
            test_cfg=dict(type='TestLoop'),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=lr, weight_decay=1e-4),
                clip_grad=dict(max_norm=1.0),
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
            ),
            log_processor=dict(by_epoch=False, window_size=1),
            visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name=str(work_dir)),
        )
    )


def test_the_reduced_swin_has_fewer_tokens_at_the_size_of_the_scenes():
    plain, reduced = (MODELS.build(cfg).token_schedule((SIZE, SIZE)) for cfg in (SWIN, BACKBONES['reduced']))
    assert plain == [256, 256, 64, 64, 16, 16, 4, 4] and reduced == [256, 64, *plain[2:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    'task, backbone, iterations, metric, least',
    [
        ('instances', 'resnet', 100, 'coco/segm_mAP', 0.05),
        ('panoptic', 'resnet', 100, 'coco_panoptic/PQ', 10),
        ('semantic', 'resnet', 100, 'mIoU', 40),
        ('instances', 'swin', 60, 'coco/segm_mAP', 0.5),
        ('instances', 'reduced', 60, 'coco/segm_mAP', 0.5),
        ('panoptic', 'swin', 60, 'coco_panoptic/PQ', 50),
        ('panoptic', 'reduced', 60, 'coco_panoptic/PQ', 50),
    ],
)
def test_a_model_trains_from_scratch_and_tests_through_the_tools(
    coco, tmp_path, tool, task, backbone, iterations, metric, least
):
    cfg, path = run_cfg(coco, tmp_path / 'work', task, iterations, backbone), tmp_path / 'config.py'
    cfg.dump(path)
    status, said = tool('train', path)
    assert status == 0, said
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    *steps, tested = map(json.loads, scalars)
    losses = [step['loss'] for step in steps]
    assert len(losses) == iterations and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert tested[metric] > least
    status, said = tool('test', path, tmp_path / 'work' / f'iter_{iterations}.pth', '--work-dir', tmp_path / 'test')
    assert status == 0, said
    again = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    assert again[metric] == pytest.approx(tested[metric])
