"""MaskDINO's matching and losses, against loops over predictions, objects and pixels."""

import itertools
import math

import pytest
import torch
from mmengine.structures import InstanceData

from mmtr import UserError
from mmtr.models.maskdino.head import Prediction
from mmtr.models.maskdino.losses import WEIGHTS, MaskDINOLoss
from mmtr.models.maskdino.matching import Matcher

CLASSES, THINGS, SIZE = 4, 2, 8


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def corners(box):
    x, y, width, height = (float(value) for value in box)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def giou(a, b):
    (ax, ay, aX, aY), (bx, by, bX, bY) = corners(a), corners(b)
    inter = max(min(aX, bX) - max(ax, bx), 0) * max(min(aY, bY) - max(ay, by), 0)
    union = (aX - ax) * (aY - ay) + (bX - bx) * (bY - by) - inter
    hull = (max(aX, bX) - min(ax, bx)) * (max(aY, bY) - min(ay, by))
    return inter / union - (hull - union) / hull


def focal(x, positive):
    p = sigmoid(x)
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def cross_entropy(found, true):
    terms = [-t * math.log(sigmoid(f)) - (1 - t) * math.log(1 - sigmoid(f)) for f, t in zip(found, true)]
    return sum(terms) / len(terms)


def dice(found, true):
    found = [sigmoid(f) for f in found]
    return 1 - (2 * sum(f * t for f, t in zip(found, true)) + 1) / (sum(found) + sum(true) + 1)


def at_points(mask, points):
    """Values of a mask (H, W) at points of 0 ... 1: between the four nearest pixels, and 0 outside."""
    (height, width), values = mask.shape, []
    for x, y in points.tolist():
        column, row, value = x * width - 0.5, y * height - 0.5, 0.0
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(column), math.floor(column) + 1):
                if 0 <= i < height and 0 <= j < width:
                    value += (1 - abs(row - i)) * (1 - abs(column - j)) * float(mask[i, j])
        values.append(value)
    return values


def draw(num_queries, labels, seed=0):
    """A prediction of one image, and its objects."""
    g = torch.Generator().manual_seed(seed)
    count = len(labels)
    prediction = Prediction(
        torch.randn(1, num_queries, CLASSES, generator=g),
        torch.rand(1, num_queries, 4, generator=g) * 0.4 + 0.2,
        torch.randn(1, num_queries, SIZE, SIZE, generator=g),
    )
    true = torch.rand(count, 2 * SIZE, 2 * SIZE, generator=g) > 0.5
    target = InstanceData(
        labels=torch.tensor(labels, dtype=torch.long), masks=true, bboxes=torch.rand(count, 4, generator=g) * 0.4 + 0.2
    )
    return prediction, target


def costs(prediction, target, points, num_things=None):
    """Cost of each query for each object, with masks at these points."""
    scores, boxes, masks = (part[0] for part in prediction)
    true = [at_points(mask, points) for mask in target.masks]
    table, box_costs = [], []
    for q in range(len(scores)):
        table.append([])
        box_costs.append([])
        for n in range(len(target.labels)):
            x = float(scores[q, target.labels[n]])
            found = at_points(masks[q], points)
            table[q].append(
                4 * (focal(x, True) - focal(x, False)) + 5 * cross_entropy(found, true[n]) + 5 * dice(found, true[n])
            )
            l1 = float((boxes[q] - target.bboxes[n]).abs().sum())
            box_costs[q].append(5 * l1 - 2 * giou(boxes[q], target.bboxes[n]))
    things = [n for n, label in enumerate(target.labels) if num_things is None or label < num_things]
    mean = sum(row[n] for row in box_costs for n in things) / (len(box_costs) * len(things)) if things else 0
    return [
        [cost + (boxes[n] if n in things else mean) for n, cost in enumerate(row)]
        for row, boxes in zip(table, box_costs)
    ]


@pytest.mark.parametrize('num_things', [None, THINGS])
@pytest.mark.parametrize('labels', [[0, 1, 3], [2, 3], [1]])
def test_cost_is_the_weighted_sum_of_class_box_and_mask(labels, num_things):
    prediction, target = draw(5, labels)
    matcher, seen = Matcher(WEIGHTS, 50, num_things), []
    for i, cost in enumerate(matcher.assigner.match_costs):

        def noted(*args, cost=cost, **kwargs):
            seen.append(cost(*args, **kwargs))
            return seen[-1]

        matcher.assigner.match_costs[i] = noted
    torch.manual_seed(0)
    matcher(prediction, [target])
    torch.manual_seed(0)
    expected = torch.tensor(costs(prediction, target, torch.rand(50, 2), num_things))
    torch.testing.assert_close(sum(seen), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('queries, labels', [(5, [0, 1, 3]), (4, [2, 2, 2, 2]), (3, [0, 1, 2, 3, 0])])
def test_the_cheapest_assignment_is_found_among_all(queries, labels):
    prediction, target = draw(queries, labels, seed=1)
    torch.manual_seed(0)
    ((found, objects),) = Matcher(WEIGHTS, 50)(prediction, [target])
    torch.manual_seed(0)
    table = costs(prediction, target, torch.rand(50, 2))
    count = min(queries, len(labels))
    assert len(found) == len(set(found.tolist())) == len(set(objects.tolist())) == count
    best = min(
        sum(table[q][n] for q, n in zip(chosen, order))
        for chosen in itertools.combinations(range(queries), count)
        for order in itertools.permutations(range(len(labels)), count)
    )
    assert sum(table[q][n] for q, n in zip(found.tolist(), objects.tolist())) == pytest.approx(best, rel=1e-5)


def test_masks_are_compared_where_they_are():
    # Equal but for the half of the image that each mask covers.
    masks = torch.full((2, SIZE, SIZE), -5.0)
    masks[0, :, :4], masks[1, :, 4:] = 5, 5
    prediction = Prediction(torch.zeros(1, 2, CLASSES), torch.full((1, 2, 4), 0.5), masks.unsqueeze(0))
    target = InstanceData(labels=torch.tensor([0, 0]), bboxes=torch.full((2, 4), 0.5), masks=masks.flip(0) > 0)
    ((found, objects),) = Matcher(WEIGHTS, 200)(prediction, [target])
    assert dict(zip(found.tolist(), objects.tolist())) == {0: 1, 1: 0}


def matched(labels):
    return [(torch.arange(len(labels)).flip(0), torch.arange(len(labels)))]


@pytest.mark.parametrize('num_things', [None, THINGS])
@pytest.mark.parametrize('labels', [[0, 3, 1], [2, 3]])
def test_losses_of_matched_queries(labels, num_things):
    prediction, target = draw(6, labels, seed=2)
    total = 7.0
    torch.manual_seed(0)
    losses = MaskDINOLoss(CLASSES, num_things=num_things, num_points=40, importance_sample_ratio=0.0)(
        prediction, [target], matched(labels), total
    )
    torch.manual_seed(0)
    torch.rand(len(labels), 3 * 40, 2)  # from which the uncertain ones, here none, are chosen
    points = torch.rand(len(labels), 40, 2)
    scores, boxes, masks = (part[0] for part in prediction)
    pairs = [(len(labels) - 1 - n, n) for n in range(len(labels))]
    with_box = [(q, n) for q, n in pairs if num_things is None or labels[n] < num_things]
    answer = dict(pairs)
    expected = dict(
        loss_cls=4
        * sum(
            focal(float(scores[q, k]), q in answer and labels[answer[q]] == k) for q in range(6) for k in range(CLASSES)
        ),
        loss_bbox=5 * sum(float((boxes[q] - target.bboxes[n]).abs().sum()) for q, n in with_box),
        loss_giou=2 * sum(1 - giou(boxes[q], target.bboxes[n]) for q, n in with_box),
        loss_mask=0,
        loss_dice=0,
    )
    for q, n in pairs:
        found, true = (at_points(mask, points[n]) for mask in (masks[q], target.masks[n]))
        expected['loss_mask'] += 5 * cross_entropy(found, true)
        expected['loss_dice'] += 5 * dice(found, true)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value / total, rel=1e-4, abs=1e-6), name


def test_class_loss_by_softmax_weighs_no_object_by_a_tenth():
    labels, total = [1, 3], 5.0
    prediction, target = draw(4, labels)
    scores = torch.randn(1, 4, CLASSES + 1, generator=torch.Generator().manual_seed(3))
    losses = MaskDINOLoss(CLASSES, softmax=True, num_points=10)(
        prediction._replace(scores=scores), [target], matched(labels), total
    )
    wanted = [3, 1, CLASSES, CLASSES]  # query 1 has object 0, query 0 object 1
    terms, weights = [], []
    for row, k in zip(scores[0].tolist(), wanted):
        weights.append(0.1 if k == CLASSES else 1.0)
        terms.append(weights[-1] * (math.log(sum(math.exp(x) for x in row)) - row[k]))
    assert float(losses['loss_cls']) == pytest.approx(4 * sum(terms) / sum(weights), rel=1e-5)


def test_three_quarters_of_the_points_are_the_most_uncertain():
    # The upper half is uncertain and wrong, the lower half certain and right.
    masks = torch.full((1, 1, 64, 64), -12.0)
    masks[..., :32, :] = -0.1
    target = InstanceData(labels=torch.tensor([0]), bboxes=torch.full((1, 4), 0.5), masks=masks[0] > -6)
    prediction = Prediction(torch.zeros(1, 1, CLASSES), torch.full((1, 1, 4), 0.5), masks)
    pairs = [(torch.tensor([0]), torch.tensor([0]))]

    def loss(**kwargs):
        torch.manual_seed(0)
        return float(MaskDINOLoss(CLASSES, num_points=4000, **kwargs)(prediction, [target], pairs, 1.0)['loss_mask'])

    # Of three times as many points, three quarters are found above; of the others half are.
    share = loss() / loss(importance_sample_ratio=1.0)
    assert share == pytest.approx(0.75 + 0.25 / 2, abs=0.03)


@pytest.mark.parametrize('softmax', [False, True])
def test_images_without_objects_have_a_class_loss_and_every_gradient(softmax):
    prediction, target = draw(5, [])
    scores = torch.randn(1, 5, CLASSES + softmax)
    prediction = Prediction(*(part.clone().requires_grad_() for part in (scores, *prediction[1:])))
    indices = Matcher(WEIGHTS, 10)(prediction._replace(scores=scores[..., :CLASSES]), [target])
    assert [len(part) for part in indices[0]] == [0, 0]
    losses = MaskDINOLoss(CLASSES, softmax=softmax, num_points=10)(prediction, [target], indices, 1.0)
    assert losses['loss_cls'] > 0 and not any(losses[f'loss_{name}'] for name in ('bbox', 'giou', 'mask', 'dice'))
    sum(losses.values()).backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in prediction)
    assert prediction.scores.grad.any() and not prediction.masks.grad.any()


@pytest.mark.parametrize(
    'settings, said',
    [
        (dict(weights=dict(box=1)), "loss.weights has 'box'"),
        (dict(oversample_ratio=0.5), 'oversample_ratio=0.5'),
        (dict(importance_sample_ratio=2), 'importance_sample_ratio=2'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        MaskDINOLoss(CLASSES, **settings)
