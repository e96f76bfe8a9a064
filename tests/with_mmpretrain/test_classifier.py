"""mmtr.ImageClassifier: stock, and the auxiliary losses of its backbone's reducer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from mmtr import UserError, apply_token_reduction
from mmtr.registry import MODELS

from .test_backbones import ARCH, drawn, images

CLASSES = 5
CROPR = dict(type='Cropr', r=6, layers=(0, 1), task='classification', num_classes=CLASSES)
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')


def config(reduction=None, kind='mmtr.ImageClassifier', loss=SMOOTH, train_cfg=None, out_type='cls_token', **head):
    return ConfigDict(
        type=kind,
        backbone=dict(
            type='mmtr.ClsVisionTransformer', arch=ARCH, img_size=64, out_type=out_type, token_reduction=reduction
        ),
        head=dict(**{'type': 'mmpretrain.LinearClsHead', 'num_classes': CLASSES, 'in_channels': 32, **head}, loss=loss),
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=CLASSES),
        train_cfg=train_cfg,
    )


def built(*args, **kwargs):
    return drawn(MODELS.build(config(*args, **kwargs)))


def batch(labels=(3, 1)):
    return dict(
        inputs=list(images(64, 64, len(labels))), data_samples=[DataSample().set_gt_label(label) for label in labels]
    )


def losses(model, data):
    """Losses of a training step, what the preprocessor made of ``data``, and the auxiliary logits by module."""
    seen, hooks = {}, []
    for name, head in model.backbone.token_reducer.heads.items():
        hooks.append(head.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out[:, 0]})))
    model.train()
    data = model.data_preprocessor(data, training=True)
    try:
        return model(**data, mode='loss'), data['data_samples'], seen
    finally:
        for hook in hooks:
            hook.remove()


def test_without_a_reduction_it_is_stock():
    own = built()
    stock = drawn(MODELS.build(config(kind='mmpretrain.ImageClassifier')))
    assert type(stock) is ImageClassifier and list(own.state_dict()) == list(stock.state_dict())
    data = own.data_preprocessor(batch())
    torch.testing.assert_close(own(**data, mode='loss'), stock(**data, mode='loss'))
    for a, b in zip(own(**data, mode='predict'), stock(**data, mode='predict')):
        torch.testing.assert_close(a.pred_score, b.pred_score)


def smoothed(target):
    return 0.9 * target + 0.1 / CLASSES


def test_auxiliary_losses_are_those_of_the_head():
    found, _, logits = losses(built(CROPR), batch())
    assert set(found) == {'loss', 'reducer.layer_00.loss_ce', 'reducer.layer_01.loss_ce'}
    target = smoothed(F.one_hot(torch.tensor([3, 1]), CLASSES).float())
    for name, scores in logits.items():
        expected = -(target * scores.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(found[f'reducer.{name}.loss_ce'], expected)
    # Without smoothing, and without a loss of the head's that mixes.
    found, _, logits = losses(built(CROPR, loss=dict(type='CrossEntropyLoss', loss_weight=3.0)), batch())
    for name, scores in logits.items():
        torch.testing.assert_close(found[f'reducer.{name}.loss_ce'], 3 * F.cross_entropy(scores, torch.tensor([3, 1])))


@pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
def test_mixed_scores_win_over_the_unmixed_label(augment):
    model = built(CROPR, train_cfg=dict(augments=dict(type=augment, alpha=1.0)))
    torch.manual_seed(1)
    np.random.seed(1)
    found, samples, logits = losses(model, batch((3, 1, 0, 2)))
    scores = torch.stack([sample.gt_score for sample in samples])
    mixed = smoothed(scores)
    plain = smoothed(F.one_hot(torch.cat([sample.gt_label for sample in samples]), CLASSES).float())
    assert (mixed - plain).abs().max() > 0.05
    for name, own in logits.items():
        expected, wrong = (-(target * own.log_softmax(1)).sum(1).mean() for target in (mixed, plain))
        torch.testing.assert_close(found[f'reducer.{name}.loss_ce'], expected)
        assert (expected - wrong).abs() > 1e-3


def test_scores_of_one_class_are_scores():
    # to_onehot without a batch augmentation gives whole numbers.
    cfg = config(CROPR)
    cfg.data_preprocessor.to_onehot = True
    found, samples, logits = losses(drawn(MODELS.build(cfg)), batch())
    assert not samples[0].gt_score.is_floating_point()
    labels, _, _ = losses(built(CROPR), batch())
    torch.testing.assert_close(found, labels)


def test_gradients_reach_every_head_and_no_further():
    model = built(CROPR)
    found, _, _ = losses(model, batch())
    sum(loss for name, loss in found.items() if name.startswith('reducer.')).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f'backbone.token_reducer.{n}' for n, _ in model.backbone.token_reducer.named_parameters()}


@pytest.mark.parametrize(
    'reduction, given, message',
    [
        (dict(CROPR, num_classes=4), {}, '^token_reduction.num_classes=4, but the model has 5 classes'),
        (
            dict(type='ALGM', variant='released', global_layer=3),
            dict(out_type='featmap'),
            "^token_reduction.restore_at='after_head' gives back the logits of a segmentor, and a ImageClassifier",
        ),
    ],
)
def test_what_cannot_work_is_said_when_it_is_built(reduction, given, message):
    with pytest.raises(UserError, match=message):
        built(reduction, **given)
    model = built(**given)
    with pytest.raises(UserError, match=message):
        apply_token_reduction(model, reduction)


@pytest.mark.parametrize(
    'reduction, data, message',
    [
        (
            dict(CROPR, task='semantic'),
            batch(),
            '^token_reduction.task needs gt_sem_seg in the training data, which ha',
        ),
        (
            CROPR,
            batch(([0, 2], [1, 3])),
            r"^token_reduction.task='classification' with num_classes=5 needs a label or 5",
        ),
    ],
    ids=['a map', 'two labels'],
)
def test_annotations_of_another_kind(reduction, data, message):
    model = built(
        reduction, loss=dict(type='CrossEntropyLoss', use_sigmoid=True), type='mmpretrain.MultiLabelLinearClsHead'
    )
    with pytest.raises(UserError, match=message):
        losses(model, data)


def test_a_head_without_classes():
    # Nothing can be compared.
    cfg = config(CROPR, type='mmpretrain.ClsHead')
    for key in ('num_classes', 'in_channels'):
        del cfg.head[key]
    assert MODELS.build(cfg).backbone.token_reducer.num_classes == CLASSES


def test_the_stock_classifier_does_not_ask_for_auxiliary_losses():
    model = built(CROPR, kind='mmpretrain.ImageClassifier')
    with pytest.raises(
        UserError, match="'mmtr.ImageClassifier' in place of the stock type, or set token_reduction.dep"
    ):
        losses(model, batch())


def test_the_released_settings_of_algm_fit_a_class_token():
    model = built(dict(type='ALGM', variant='released', global_layer=3))
    with torch.no_grad():
        assert model(images(64, 64)).shape == (2, CLASSES)
