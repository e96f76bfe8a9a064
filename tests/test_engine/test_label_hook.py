"""Labels outside the classes stop the run with the file and the value."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmtr.engine.hooks import LabelCheckHook
from mmtr.errors import UserError


def sample(labels, **meta):
    data = SegDataSample(metainfo=dict(img_path='a.jpg', seg_map_path='a.png', **meta))
    data.gt_sem_seg = PixelData(data=torch.tensor(labels)[None])
    return data


def runner(ignore_index=255, metrics=(), **head):
    model = nn.Module()
    if head:
        model.decode_head = nn.Identity()
        vars(model.decode_head).update(head, ignore_index=ignore_index)
    return SimpleNamespace(model=model, test_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics)))


def batch(*samples):
    return dict(inputs=[], data_samples=list(samples))


def test_classes_and_the_ignored_label_pass():
    LabelCheckHook().before_train_iter(runner(num_classes=3), 0, batch(sample([[0, 1], [2, 255]])))
    LabelCheckHook().before_train_iter(runner(7, num_classes=3), 0, batch(sample([[0, 1], [2, 7]])))


@pytest.mark.parametrize('label', [3, 254, -1])
def test_a_label_outside_is_named_with_its_file_and_the_range(label):
    samples = batch(sample([[0, 1], [2, 255]]), sample([[0, label], [1, 1]]))
    with pytest.raises(UserError, match=rf"'a\.png' holds the label {label}, .* 0 to 2, .* 255 "):
        LabelCheckHook().before_train_iter(runner(num_classes=3), 0, samples)


def test_the_hint_fits_the_setting():
    hook, model = LabelCheckHook(), runner(num_classes=3)
    with pytest.raises(UserError, match='set reduce_zero_label=True'):
        hook.before_train_iter(model, 0, batch(sample([[3]], reduce_zero_label=False)))
    with pytest.raises(UserError, match='took 1 off .* set it to False'):
        hook.before_train_iter(model, 0, batch(sample([[3]], reduce_zero_label=True)))
    with pytest.raises(UserError, match='give model and data set the classes that there are'):
        hook.before_train_iter(model, 0, batch(sample([[9]], reduce_zero_label=False)))
    with pytest.raises(UserError, match="leave the head's ignore_index at 255"):
        hook.before_train_iter(runner(0, num_classes=3), 0, batch(sample([[255]])))


def test_background_and_foreground_are_two_classes():
    with pytest.raises(UserError, match='label 1, .* set num_classes=2, out_channels=1 ') as raised:
        LabelCheckHook().before_train_iter(runner(num_classes=1), 0, batch(sample([[0, 1]])))
    assert 'reduce_zero_label' not in str(raised.value)


@pytest.mark.parametrize('channels, what', [(2, 'grey with alpha'), (3, 'colour'), (4, 'colour with alpha')])
def test_an_image_is_no_label_map(channels, what):
    image = sample([[0]])
    image.gt_sem_seg = PixelData(data=torch.zeros(6, 5, channels, dtype=torch.long))  # as PackSegInputs leaves it
    with pytest.raises(UserError, match=rf"'a\.png' has {channels} channels, it is an image \({what}\)"):
        LabelCheckHook().before_train_iter(runner(num_classes=3), 0, batch(image))


def test_evaluation_also_allows_what_the_metric_ignores():
    metrics = [SimpleNamespace(ignore_index=9)]
    LabelCheckHook().before_test_iter(runner(num_classes=3, metrics=metrics), 0, batch(sample([[9, 255]])))
    with pytest.raises(UserError, match='holds the label 8'):
        LabelCheckHook().before_test_iter(runner(num_classes=3, metrics=metrics), 0, batch(sample([[8, 9]])))


def test_augmented_test_samples_are_looked_into():
    with pytest.raises(UserError, match='holds the label 5'):
        LabelCheckHook().before_test_iter(
            runner(num_classes=3), 0, dict(data_samples=[[sample([[1]])], [sample([[5]])]])
        )


@pytest.fixture
def classifier():
    """Runner of what derives from mmpretrain's classifiers, which are not imported for it, of three classes."""
    model = type('BaseClassifier', (nn.Module,), {'__module__': 'mmpretrain.models.classifiers.base'})()
    model.head = nn.Identity()
    model.head.num_classes = 3
    return SimpleNamespace(model=model, test_loop=SimpleNamespace(evaluator=SimpleNamespace(metrics=())))


def labelled(*labels):
    return BaseDataElement(metainfo=dict(img_path='a.jpg'), gt_label=torch.tensor(labels))


def test_a_class_of_an_image_that_is_none_is_named_with_its_file_and_the_range(classifier):
    hook = LabelCheckHook()
    hook.before_train_iter(classifier, 0, batch(labelled(0), labelled(2, 1), BaseDataElement()))
    for check in (hook.before_train_iter, hook.before_test_iter):
        for label in (3, -1):
            with pytest.raises(UserError, match=rf"'a\.jpg' has the label {label}, .* 0 to 2, .* set num_classes "):
                check(classifier, 0, batch(labelled(0), labelled(label)))


def test_labels_of_what_is_no_classifier_are_its_own(classifier):
    classifier.model = nn.ModuleDict(dict(head=classifier.model.head))  # such as mmdet's of persons
    LabelCheckHook().before_test_iter(classifier, 0, batch(labelled(9)))


def test_models_without_classes_and_samples_without_labels_are_left_alone():
    LabelCheckHook().before_train_iter(runner(), 0, batch(sample([[99]])))
    LabelCheckHook().before_train_iter(runner(num_classes=3), 0, batch(SegDataSample()))
