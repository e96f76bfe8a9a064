"""Where predictions differ, against loops over pixels and over all pairings."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmtr import UserError
from mmtr.inference.agreement import difference

SHAPE = (12, 15)


def semantic(labels, kind=SegDataSample, name='data'):
    return kind(pred_sem_seg=PixelData(**{name: torch.as_tensor(labels)[None]}))


def detected(boxes, labels, scores, masks=None):
    found = InstanceData(
        bboxes=torch.tensor(boxes).float().reshape(-1, 4),
        labels=torch.tensor(labels).long(),
        scores=torch.tensor(scores).float(),
    )
    if masks is not None:
        found.masks = torch.as_tensor(np.array(masks, bool).reshape(-1, *SHAPE))
    return DetDataSample(pred_instances=found, metainfo=dict(ori_shape=SHAPE))


def panoptic(segments):
    return DetDataSample(pred_panoptic_seg=PixelData(sem_seg=torch.as_tensor(segments)[None]))


@pytest.mark.parametrize('kind, name', [(SegDataSample, 'data'), (DetDataSample, 'sem_seg')])
def test_labels_differ_where_the_class_does(kind, name):
    one, other = np.random.default_rng(0).integers(0, 3, (2, *SHAPE))
    found = difference(*(semantic(labels, kind, name) for labels in (one, other)))
    assert np.array_equal(found.pixels, one != other) and found.instances is None


def test_the_class_of_an_image_is_the_same_or_another():
    one, same, other = (BaseDataElement(pred_label=torch.tensor([label])) for label in (3, 3, 1))
    for second, differs in ((same, False), (other, True)):
        found = difference(one, second)
        assert (found.pixels.tolist(), found.instances, found.unit) == ([[differs]], None, 'images')


def overlap(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def by_loops(one, other, threshold):
    """Pixel by pixel, and over all ways to pair instances; of a list of (label, score, mask) each."""
    one, other = ([each for each in found if each[1] > threshold] for found in (one, other))

    def same(a, b):
        return a[0] == b[0] and overlap(a[2], b[2]) > 0.5

    def top(found, pixel):
        return max((each for each in found if each[2][pixel]), key=lambda each: each[1], default=None)

    differ = np.zeros(SHAPE, bool)
    for pixel in product(*map(range, SHAPE)):
        a, b = top(one, pixel), top(other, pixel)
        differ[pixel] = (a is None) != (b is None) or (a is not None and not same(a, b))
    few, many = sorted((one, other), key=len)
    paired = max(sum(same(a, b) for a, b in zip(few, chosen)) for chosen in permutations(many, len(few)))
    return differ, (len(one), len(other), paired)


@pytest.mark.parametrize('seed', range(4))
def test_instances_against_loops(seed):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(5):
        mask = np.zeros(SHAPE, bool)
        top, left = rng.integers(0, 8, 2)
        mask[top : top + rng.integers(3, 7), left : left + rng.integers(3, 7)] = True
        found.append((int(rng.integers(2)), float(rng.random()), mask))
    # The other: some moved a little, one of another class, one twice, one with a low score, in another order.
    other = [(label, score * 0.9, np.roll(mask, int(rng.integers(0, 3)), 1)) for label, score, mask in found]
    other[0] = (1 - other[0][0], *other[0][1:])
    other = [*other[::-1][:4], (*other[-1][:1], 0.95, other[-1][2])]
    samples = [
        detected(np.zeros((5, 4)), *zip(*((label, score) for label, score, _ in each)), [mask for *_, mask in each])
        for each in (found, other)
    ]
    expected, counts = by_loops(found, other, 0.2)
    result = difference(*samples, score_thr=0.2)
    assert np.array_equal(result.pixels, expected) and result.instances == counts
    assert 0 < expected.mean() < 1 and 0 < counts[2] < 5


def test_without_masks_an_instance_is_its_box():
    one = detected([[2, 1, 8, 6], [10, 8, 14, 11]], [0, 0], [0.9, 0.8])
    other = detected([[3, 1, 8, 6]], [0], [0.9])
    expected = np.zeros(SHAPE, bool)
    expected[1:6, 2] = expected[8:11, 10:14] = True
    found = difference(one, other)
    assert np.array_equal(found.pixels, expected) and found.instances == (2, 1, 1)


def test_nothing_found_is_no_difference():
    nothing = detected([], [], [], [])
    assert difference(nothing, nothing).instances == (0, 0, 0) and not difference(nothing, nothing).pixels.any()
    found = difference(nothing, detected([[0, 0, 4, 4]], [0], [0.9], [np.ones(SHAPE)]))
    assert found.pixels.all() and found.instances == (0, 1, 0)


def test_numbers_of_panoptic_segments_mean_nothing():
    segments = np.full(SHAPE, 7)  # stuff
    segments[2:6, 2:6], segments[7:11, 2:6] = 1001, 2001
    other = segments.copy()
    other[segments == 1001], other[segments == 2001] = 2001, 1001
    found = difference(panoptic(segments), panoptic(other))
    assert not found.pixels.any() and found.instances == (2, 2, 2)
    other[2:6, 3:6] = 3001  # a quarter of the first thing is left of it
    found = difference(panoptic(segments), panoptic(other))
    assert np.argwhere(found.pixels).tolist() == [[row, 2] for row in range(2, 6)]
    assert found.instances == (2, 3, 2)


def test_stuff_differs_by_its_class():
    one, other = np.full(SHAPE, 7), np.full(SHAPE, 7)
    other[:8] = 5
    assert np.array_equal(difference(panoptic(one), panoptic(other)).pixels, other == 5)


def test_a_prediction_of_another_kind_is_refused():
    with pytest.raises(UserError, match='neither labels nor instances, but pred_depth_map'):
        difference(*[SegDataSample(pred_depth_map=PixelData(data=torch.zeros(1, 2, 2)))] * 2)
