"""Losses of the auxiliary heads of Token Cropr: what they compare, whom they reach and what they refuse."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmtr import UserError
from mmtr.models.segmentors import EncoderDecoder
from mmtr.reducers.auxiliary import auxiliary_outputs

from .cropr_parts import CHANNELS, reducer
from .test_contract import images
from .test_contract import vit as backbone


def samples(shape=(64, 96)):
    torch.manual_seed(3)
    label = torch.randint(0, 5, (2, 1, *shape))
    label[:, :, :20, :40] = 255
    return [
        BaseDataElement(
            gt_sem_seg=PixelData(data=each),
            gt_instances=InstanceData(labels=torch.tensor(boxes, dtype=torch.long)),
            gt_label=torch.tensor([2 * i]),
        )
        for i, (each, boxes) in enumerate(zip(label, ([1, 4, 1], [])))
    ]


@pytest.mark.parametrize('shape', [(64, 96), (100, 60)])
def test_semantic_loss_is_cross_entropy_with_the_corner_of_each_patch(shape):
    cropr, data = reducer(num_classes=5), samples(shape)
    logits = torch.randn(2, 24, 5)
    found = cropr.losses({'layer_02': logits}, data)
    each = []
    for image in range(2):
        for place in range(24):
            row, column = place // 6 * shape[0] // 4, place % 6 * shape[1] // 6
            label = data[image].gt_sem_seg.data[0, row, column].item()
            if label != 255:
                each.append(-logits[image, place].log_softmax(0)[label])
    assert 24 < len(each) < 48 and list(found) == ['layer_02.loss_ce']
    torch.testing.assert_close(found['layer_02.loss_ce'], torch.stack(each).mean())


@pytest.mark.parametrize('ignored', [255, 9, 0])
def test_the_label_that_the_main_head_ignores_is_ignored(ignored):
    model = EncoderDecoder(
        ConfigDict(
            type='mmtr.VisionTransformer',
            img_size=(64, 96),
            patch_size=16,
            embed_dims=CHANNELS,
            num_layers=3,
            num_heads=2,
            token_reduction=dict(type='Cropr', num_classes=6, r=2),
        ),
        ConfigDict(
            type='FCNHead',
            in_channels=CHANNELS,
            channels=CHANNELS,
            num_classes=6,
            num_convs=0,
            concat_input=False,
            dropout_ratio=0,
            norm_cfg=None,
            ignore_index=ignored,
        ),
        test_cfg=ConfigDict(mode='whole'),
    )
    model.backbone.set_token_reduction(dict(type='Cropr', num_classes=6, r=2))  # as the hook does: another one
    model.train()
    data = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in torch.randint(1, 6, (2, 1, 64, 96))]
    for sample in data:
        sample.gt_sem_seg.data[0, :, :48] = ignored
    noted = {}
    note = model.backbone.token_reducer.losses
    model.backbone.token_reducer.losses = lambda outputs, samples: noted.update(outputs) or note(outputs, samples)
    losses = model.loss(images(2, 64, 96), data)
    for name, logits in noted.items():
        each = [
            -logits[image, place].log_softmax(0)[data[image].gt_sem_seg.data[0, place // 6 * 16, place % 6 * 16]]
            for image in range(2)
            for place in range(24)
            if place % 6 > 2
        ]
        torch.testing.assert_close(losses[f'reducer.{name}.loss_ce'], torch.stack(each).mean())
    assert len(noted) == 1


def test_semantic_loss_of_an_ignored_batch_is_zero():
    data = samples()
    for sample in data:
        sample.gt_sem_seg.data.fill_(255)
    assert reducer(num_classes=5).losses({'layer_00': torch.randn(2, 24, 5)}, data)['layer_00.loss_ce'] == 0


def test_multilabel_and_classification_losses():
    logits = torch.randn(2, 1, 5)
    found = reducer(num_classes=5, task='multilabel').losses({'layer_00': logits}, samples())['layer_00.loss_bce']
    present = [[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]
    p = logits.squeeze(1).sigmoid()
    expected = -torch.stack(
        [p[b, c].log() if present[b][c] else (1 - p[b, c]).log() for b in range(2) for c in range(5)]
    ).mean()
    torch.testing.assert_close(found, expected)
    found = reducer(num_classes=5, task='classification').losses({'layer_00': logits}, samples())['layer_00.loss_ce']
    log = logits.squeeze(1).log_softmax(1)
    torch.testing.assert_close(found, -(log[0, 0] + log[1, 2]) / 2)


@pytest.mark.parametrize('task', ['semantic', 'multilabel', 'classification'])
def test_gradient_of_the_auxiliary_losses_reaches_the_auxiliary_heads_alone(task):
    model = backbone(dict(type='Cropr', task=task, num_classes=5)).train()
    with auxiliary_outputs() as outputs:
        model(images(2, 64, 96))
    losses = model.token_reducer.losses(outputs[model.token_reducer], samples())
    assert [name.split('.')[0] for name in losses] == ['layer_00', 'layer_01']
    sum(losses.values()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached and all(name.startswith('token_reducer.heads.') for name in reached)
    assert {name.split('.')[2] for name in reached} == {'layer_00', 'layer_01'}
    assert all(p.grad.abs().sum() > 0 for p in model.token_reducer.parameters())


def test_losses_are_those_of_the_thread():
    with auxiliary_outputs() as outer:
        with auxiliary_outputs() as inner:
            model = backbone(dict(type='Cropr')).train()
            model(images())
    assert outer == {} and list(inner[model.token_reducer]) == ['layer_00', 'layer_01']


def test_training_without_the_losses_is_refused_and_evaluation_is_not():
    model = backbone(dict(type='Cropr'))
    model(images())
    with pytest.raises(UserError, match="does not ask for: train it with type='mmtr.EncoderDecoder'"):
        model.train()(images())
    backbone(dict(type='Cropr', deploy=True)).train()(images())


def test_labels_outside_of_the_classes_are_named():
    for task in ('semantic', 'multilabel'):
        cropr = reducer(num_classes=3, task=task)
        also = ', or 255 for what is ignored' if task == 'semantic' else ''
        with pytest.raises(UserError, match=f'num_classes=3, .* data hold the label 4: labels must be 0 to 2{also}.$'):
            cropr.losses({'layer_00': torch.zeros(2, 24 if task == 'semantic' else 1, 3)}, samples())
    with pytest.raises(UserError, match='task needs gt_label in the training data, which have gt_sem_seg'):
        reducer(task='classification').losses(
            {'layer_00': torch.zeros(1, 1, 150)}, [BaseDataElement(gt_sem_seg=PixelData(data=torch.zeros(1, 4, 4)))]
        )
