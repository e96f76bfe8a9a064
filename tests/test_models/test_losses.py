"""The losses of a foreground channel, pixel by pixel."""

import math

import pytest
import torch
from mmseg.registry import MODELS

from mmtr import UserError

BCE = dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True)
DICE = dict(type='mmtr.BinaryDiceLoss')


def example(ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 2, (3, 5, 6), generator=generator)
    if ignored:
        labels[torch.rand(3, 5, 6, generator=generator) < 0.3] = 255
    return logits, labels


def known(logits, labels):
    """For each image (probability, label) of each pixel that is not ignored."""
    pairs = [zip(image.flatten().tolist(), row.flatten().tolist()) for image, row in zip(logits, labels)]
    return [[(1 / (1 + math.exp(-logit)), label) for logit, label in image if label != 255] for image in pairs]


@pytest.mark.parametrize('ignored', [False, True])
@pytest.mark.parametrize('naive', [False, True])
def test_dice_is_of_the_foreground_and_of_pixels_that_are_known(ignored, naive):
    logits, labels = example(ignored)
    losses = []
    for image in known(logits, labels):
        both = 2 * sum(p * y for p, y in image)
        if naive:
            losses.append(1 - (both + 1e-3) / (sum(p + y for p, y in image) + 1e-3))
        else:
            losses.append(1 - both / (sum(p * p + y * y for p, y in image) + 2e-3))
    loss = MODELS.build(dict(**DICE, naive_dice=naive, loss_weight=0.5))
    assert loss.loss_name == 'loss_dice'
    value = loss(logits, labels)
    assert value.item() == pytest.approx(0.5 * sum(losses) / 3, abs=1e-6)
    value.backward()
    assert (logits.grad[:, 0][labels == 255] == 0).all() and (logits.grad[:, 0][labels != 255] != 0).all()


def test_better_predictions_lose_less_which_the_stock_loss_turns_round():
    labels = torch.tensor([[[0, 0, 1, 1]]])
    right, wrong = (sign * torch.tensor([[[[-9.0, -9.0, 9.0, 9.0]]]]) for sign in (1, -1))
    ours, stock = MODELS.build(DICE), MODELS.build(dict(type='DiceLoss'))
    assert ours(right, labels) < 0.01 and ours(wrong, labels) > 0.99
    assert stock(right, labels) > 0.99 and stock(wrong, labels) < 0.01  # if this fails, BinaryDiceLoss can go


def test_another_ignored_label_is_followed():
    logits, labels = example(True)
    other = labels.where(labels != 255, torch.tensor(7))
    loss = MODELS.build(DICE)
    assert loss(logits, other, ignore_index=7) == loss(logits, labels)


def test_heads_of_two_channels_are_refused():
    with pytest.raises(UserError, match='out_channels=1, not 2'):
        MODELS.build(DICE)(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.long))


@pytest.mark.parametrize('ignored', [False, True])
def test_stock_cross_entropy_of_one_channel_is_of_pixels_that_are_known(ignored):
    logits, labels = example(ignored)
    each = [-math.log(p if y else 1 - p) for image in known(logits, labels) for p, y in image]
    value = MODELS.build(BCE)(logits, labels, ignore_index=255)
    assert value.item() == pytest.approx(sum(each) / len(each), abs=1e-6)
